"""Parameters and multiply-adds of the model of a config."""

from functools import cache
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from .flops import count_multiply_adds

# Height and width in pixels of the images for which papers count detectors and segmentors.
SIZES = {'mmdet': (800, 1280), 'mmseg': (512, 2048)}


class AllRegions(nn.Module):
    """A two-stage detector whose heads compute the largest number of regions.

    How many regions it finds in an image depends on the values, which do not matter here.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> None:
        self.detector.rpn_head(self.detector.extract_feat(images))
        heads, limits = self.detector.roi_head, self.detector.test_cfg
        for kind, number in ('bbox', limits.rpn.max_per_img), ('mask', limits.rcnn.max_per_img):
            extractors, stages = (
                modules if isinstance(modules, nn.ModuleList) else [modules]
                for modules in (
                    getattr(heads, f'{kind}_roi_extractor'),
                    getattr(heads, f'{kind}_head'),
                )
            )
            for extractor, head in zip(extractors, stages, strict=True):
                size = extractor.roi_layers[0].output_size
                head(images.new_empty(number, extractor.out_channels, *size))


def build_model(cfg: Config) -> nn.Module:
    """Build the model to count it: in eval mode and without the auxiliary head."""
    MMLogger.get_current_instance().setLevel('WARNING')
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    if hasattr(model, 'auxiliary_head'):
        del model.auxiliary_head
    return AllRegions(model) if hasattr(model, 'roi_head') else model


def image_size(cfg: Config) -> tuple[int, int]:
    """Height and width in pixels of the image for which the papers count the model of a config."""
    side = cfg.model.backbone.get('img_size', 224)
    return SIZES.get(cfg.default_scope, (side, side))


@cache
def measure(config: Path) -> dict:
    """Count parameters and multiply-adds.

    Returns:
        'size', the height and width of the input image in pixels, 'params' in millions, 'flops',
        the multiply-adds in billions, and 'newton', those of the iterations for an inverse, SOFT's or
        Nyströmformer's, in billions, which SOFT's papers do not count.
    """
    cfg = Config.fromfile(config)
    size = image_size(cfg)
    with torch.device('meta'):  # initialising the weights would take longer than counting
        model = build_model(cfg)
        counts = count_multiply_adds(model, torch.empty(1, 3, *size))
    newton = counts.pop('newton_inverse', 0) + counts.pop('pseudo_inverse', 0)
    params = sum(p.numel() for p in model.parameters())
    return dict(size=size, params=params / 1e6, flops=counts.total() / 1e9, newton=newton / 1e9)
