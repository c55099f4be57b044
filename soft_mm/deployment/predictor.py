"""Prediction and drawing with an ONNX file in place of a toolbox's model."""

import torch
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData

from ..engine.predictor import Predictor
from .runtimes import Session, open_session

OUTPUTS = {
    'mmpretrain': [['scores']],
    'mmdet': [['boxes', 'scores', 'labels'], ['boxes', 'scores', 'labels', 'masks']],
    'mmseg': [['classes']],
}


class OnnxModel:
    """Predicts with a session what the PyTorch model predicts.

    Args:
        model: the PyTorch model, whose weights are not used.
        session: the exported network.
    """

    def __init__(self, model: torch.nn.Module, session: Session) -> None:
        self.model, self.session = model, session

    def test_step(self, data: dict) -> list:
        """Add the predictions to the data samples and return them, as ``model.test_step`` does."""
        return [
            self._predict(image, sample)
            for image, sample in zip(data['inputs'], data['data_samples'])
        ]

    def _predict(self, image: torch.Tensor, sample):
        inputs = dict(image=image[None].numpy())
        if 'size' in self.session.inputs:
            inputs['size'] = torch.tensor(sample.ori_shape).numpy()
        outputs = self.session.run(inputs)
        outputs = {name: torch.from_numpy(array) for name, array in outputs.items()}
        if 'classes' in outputs:
            sample.pred_sem_seg = PixelData(data=outputs['classes'][None])
        elif 'boxes' in outputs:
            sample.pred_instances = self._instances(sample.metainfo, **outputs)
        else:
            (scores,) = outputs['scores']
            sample.set_pred_score(scores).set_pred_label(scores.argmax())
        return sample

    def _instances(self, meta: dict, boxes, scores, labels, masks=None) -> InstanceData:
        instances = InstanceData(bboxes=boxes, scores=scores, labels=labels)
        if masks is None:
            instances.bboxes /= boxes.new_tensor(meta['scale_factor']).repeat(2)
            return instances
        # In the file, every mask would be as large as the image; mmdet pastes regions.
        roi = self.model.roi_head
        masks = masks[:, None].expand(-1, roi.mask_head.num_classes, -1, -1)
        (instances,) = roi.mask_head.predict_by_feat(
            [masks], [instances], [meta], roi.test_cfg, rescale=True
        )
        return instances


class OnnxPredictor(Predictor):
    """Predict and draw with an exported network.

    Args:
        cfg: config that the file was exported with.
        file: ONNX file.
        runtime: see :func:`open_session`.
        score_thr: see :class:`Predictor`.

    Raises:
        ValueError: see :class:`Predictor`.
    """

    def __init__(
        self, cfg: Config, file: str, runtime: str, score_thr: float | None = None
    ) -> None:
        super().__init__(cfg, file, 'cpu', score_thr)
        self.runtime = runtime

    def _load(self, inferencer) -> dict | None:
        session = open_session(self.checkpoint, self.runtime)
        if session.outputs not in OUTPUTS[self.scope]:
            raise ValueError(
                f'{self.checkpoint} must have the outputs '
                f'{" or ".join(map(str, OUTPUTS[self.scope]))} of a whole network of {self.scope}, '
                f'got {session.outputs}'
            )
        inferencer.model = OnnxModel(inferencer.model, session)
        return session.dataset_meta
