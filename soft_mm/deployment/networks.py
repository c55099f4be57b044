"""Whole networks for the export: preprocessing, model and post-processing in standard operators.

The toolboxes' own post-processing branches on what it finds, which cannot be exported. Here every step
is an operator on tensors whose number of rows depends on the image.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from torch import Tensor, nn

from ..models.layers.landmarks import pool_to_grid
from ..ops.sizes import smaller

Outputs = dict[str, Tensor]


class Preprocessing(nn.Module):
    """Normalise and pad an image as a toolbox's ``data_preprocessor`` does.

    Args:
        data_preprocessor: of the model.
        returns_size: whether the result has the image's size before the padding.
    """

    def __init__(self, data_preprocessor: nn.Module, returns_size: bool) -> None:
        super().__init__()
        names = '_channel_conversion', 'to_rgb'  # of MMEngine's and of mmpretrain's class
        self.flip = any(getattr(data_preprocessor, name, False) for name in names)
        self.mean, self.std = data_preprocessor.mean, data_preprocessor.std
        self.divisor = getattr(data_preprocessor, 'pad_size_divisor', 1)
        self.returns_size = returns_size

    def forward(self, image: Tensor) -> Outputs:
        """Map ``(1, 3, H, W)``, uint8, to ``pixels`` and, perhaps, ``size``, ``(2,)``."""
        sides = image.shape[-2:]
        pixels = ((image.flip(1) if self.flip else image).float() - self.mean) / self.std
        if self.divisor > 1:
            height, width = (-side % self.divisor for side in sides)
            pixels = F.pad(pixels, (0, width, 0, height))
        return dict(pixels=pixels, **(dict(size=torch.tensor(sides)) if self.returns_size else {}))


class Classifier(nn.Module):
    """mmpretrain's ImageClassifier, from normalised pixels to ``scores``, ``(1, classes)``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Outputs:
        return dict(scores=self.model(pixels).softmax(1))


class Segmentor(nn.Module):
    """mmseg's EncoderDecoder, from pixels and the ``size`` of the result to ``classes``, ``(H, W)``.

    Raises:
        ValueError: if the model predicts in windows, or a single class.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if model.test_cfg.mode != 'whole':
            raise ValueError(f"model.test_cfg.mode must be 'whole', got {model.test_cfg.mode!r}")
        if model.out_channels < 2:
            raise ValueError(f'out_channels must be at least 2, got {model.out_channels}')
        self.model = model
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.AdaptiveAvgPool2d):
                    setattr(module, name, AdaptiveAvgPool(child.output_size))
                elif type(child).__name__ == 'Upsample':  # mmseg's rounds the size, which fixes it
                    options = child.mode, child.align_corners
                    setattr(module, name, nn.Upsample(None, child.scale_factor, *options))

    def forward(self, pixels: Tensor, size: Tensor) -> Outputs:
        logits = self.model.encode_decode(pixels, [dict(img_shape=pixels.shape[-2:])])
        logits = F.interpolate(
            logits, size.tolist(), mode='bilinear', align_corners=self.model.align_corners
        )
        return dict(classes=logits.argmax(1)[0])


class AdaptiveAvgPool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` for feature maps of symbolic size."""

    def __init__(self, output_size: int) -> None:
        super().__init__()
        self.grid = [output_size] * 2

    def forward(self, maps: Tensor) -> Tensor:
        return pool_to_grid(maps, self.grid)


class RetinaNet(nn.Module):
    """mmdet's RetinaNet, from padded pixels and the image's ``size`` to its detections.

    These are ``boxes (n, 4)`` as x1, y1, x2, y2 in pixels of the image, ``scores (n,)``, the best
    first, and ``labels (n,)``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        check_nms('model.test_cfg', model.bbox_head.test_cfg)
        self.model = model
        self.score_thr = nn.Buffer(torch.tensor(float(model.bbox_head.test_cfg.score_thr)))

    def forward(self, pixels: Tensor, size: Tensor) -> Outputs:
        head = self.model.bbox_head
        levels = [
            dense_candidates(head, level, *maps, size)
            for level, maps in enumerate(zip(*self.model(pixels), strict=True))
        ]
        boxes, scores, labels = (torch.cat(tensors) for tensors in zip(*levels))
        found = (scores > self.score_thr).nonzero()[:, 0]
        boxes, scores, labels = boxes[found], scores[found], labels[found]
        best = select(boxes, scores, labels, head.test_cfg, size)
        return dict(boxes=boxes[best], scores=scores[best], labels=labels[best])


class MaskRCNN(nn.Module):
    """mmdet's MaskRCNN: detections as of :class:`RetinaNet`, and ``masks (n, 28, 28)``.

    The masks are logits over each box.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        check_nms('model.test_cfg.rpn', model.rpn_head.test_cfg)
        check_nms('model.test_cfg.rcnn', model.roi_head.test_cfg)
        self.model = model
        self.score_thr = nn.Buffer(torch.tensor(float(model.roi_head.test_cfg.score_thr)))

    def forward(self, pixels: Tensor, size: Tensor) -> Outputs:
        maps = self.model.extract_feat(pixels)
        boxes, scores, labels = self.detect(maps, self.propose(maps, size), size)
        roi = self.model.roi_head
        masks = roi.mask_head(roi_features(roi.mask_roi_extractor, maps, boxes))
        masks = masks[torch.arange(boxes.shape[0]), labels]
        return dict(boxes=boxes, scores=scores, labels=labels, masks=masks)

    def propose(self, maps: Iterable[Tensor], size: Tensor) -> Tensor:
        head = self.model.rpn_head
        levels = [
            dense_candidates(head, level, *preds, size)
            for level, preds in enumerate(zip(*head(maps), strict=True))
        ]
        groups = [torch.full_like(scores, level) for level, (_, scores, _) in enumerate(levels)]
        boxes, scores, _ = (torch.cat(tensors) for tensors in zip(*levels))
        return boxes[select(boxes, scores, torch.cat(groups), head.test_cfg, size)]

    def detect(self, maps: tuple[Tensor, ...], proposals: Tensor, size: Tensor) -> tuple:
        roi = self.model.roi_head
        head, cfg = roi.bbox_head, roi.test_cfg
        logits, deltas = head(roi_features(roi.bbox_roi_extractor, maps, proposals))
        scores = logits.softmax(1)[:, :-1]  # the last class is the background
        place, labels = (scores > self.score_thr).nonzero().unbind(1)
        scores, deltas = scores[place, labels], deltas.unflatten(1, (-1, 4))[place, labels]
        boxes = clip(head.bbox_coder.decode(proposals[place], deltas), size)
        best = select(boxes, scores, labels, cfg, size)
        return boxes[best], scores[best], labels[best]


def check_nms(name: str, cfg: ConfigDict) -> None:
    if cfg.nms.get('type', 'nms') != 'nms':
        raise ValueError(f"{name}.nms.type must be 'nms', got {cfg.nms.type!r}")


def dense_candidates(
    head: nn.Module, level: int, logits: Tensor, deltas: Tensor, size: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``nms_pre`` best boxes of one level of an anchor head.

    Args:
        head: mmdet's AnchorHead with sigmoid scores.
        level: index of the level.
        logits: ``(1, anchors · classes, h, w)``.
        deltas: ``(1, anchors · 4, h, w)``.
        size: height and width to which boxes are clipped.

    Returns:
        boxes ``(n, 4)``, scores ``(n,)``, the best first, and classes ``(n,)``.
    """
    anchors = head.prior_generator.single_level_grid_priors(
        logits.shape[-2:], level, device=logits.device
    )
    scores = logits[0].movedim(0, -1).reshape(-1).sigmoid()
    scores, index = scores.topk(smaller(scores.shape[0], head.test_cfg.nms_pre))
    place, classes = index // head.cls_out_channels, index % head.cls_out_channels
    deltas = deltas[0].movedim(0, -1).reshape(-1, 4)[place]
    return clip(head.bbox_coder.decode(anchors[place], deltas), size), scores, classes


def clip(boxes: Tensor, size: Tensor) -> Tensor:
    return boxes.clamp(min=0).minimum(size.flip(0).repeat(2).to(boxes))


def select(boxes: Tensor, scores: Tensor, groups: Tensor, cfg: ConfigDict, size: Tensor) -> Tensor:
    """Non-maximum suppression in each group of boxes, with the settings of a ``test_cfg``.

    Returns:
        Indices of the selected boxes, the best first.
    """
    from torchvision.ops import nms  # torch.onnx.export translates it

    valid = (boxes[:, 2:] - boxes[:, :2] > cfg.get('min_bbox_size', -1)).all(1)
    index = valid.nonzero()[:, 0]
    apart = groups[index] * (size.max() + 1)  # boxes of different groups do not overlap
    best = nms(boxes[index] + apart[:, None], scores[index], cfg.nms.iou_threshold)
    return index[best[: cfg.max_per_img]]


def roi_features(extractor: nn.Module, maps: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
    """What mmdet's SingleRoIExtractor returns for the boxes of one image: ``(n, C, side, side)``."""
    from torchvision.ops import roi_align  # torch.onnx.export translates it, but not mmcv's

    boxes = F.pad(boxes, (1, 0))  # the index of the image in the batch
    levels = extractor.map_roi_levels(boxes, extractor.num_inputs)
    sides = extractor.roi_layers[0].output_size
    features = boxes.new_zeros(boxes.shape[0], extractor.out_channels, *sides)
    for level, layer in enumerate(extractor.roi_layers):
        place = (levels == level).nonzero()[:, 0]
        features[place] = roi_align(
            maps[level],
            boxes[place],
            sides,
            layer.spatial_scale,
            layer.sampling_ratio,
            layer.aligned,
        )
    return features


NETWORKS = {
    'ImageClassifier': Classifier,
    'RetinaNet': RetinaNet,
    'MaskRCNN': MaskRCNN,
    'EncoderDecoder': Segmentor,
}


class Network(nn.Module):
    """A toolbox's model for the export.

    It has two parts, which are traced separately: preprocessing of images of any size, and a core
    whose images have sides that are multiples of what the preprocessing pads to. With such sides,
    tracing the shapes of the feature maps takes much less time.

    Args:
        model: of one of the classes in ``NETWORKS``.

    Raises:
        ValueError: if the model has settings that are not supported.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.core = NETWORKS[type(model).__name__](model)
        detects = isinstance(self.core, RetinaNet | MaskRCNN)
        self.preprocessing = Preprocessing(model.data_preprocessor, returns_size=detects)

    def forward(self, image: Tensor, **size: Tensor) -> Outputs:
        """Map an image ``(1, 3, H, W)``, uint8, to the outputs of the core."""
        return self.core(**self.preprocessing(image), **size)
