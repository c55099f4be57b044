"""Prediction and drawing for a config of any toolbox, through the toolbox's own inferencer."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from importlib import import_module
from itertools import groupby, islice
from threading import Lock
from typing import NamedTuple

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from mmengine.runner import load_checkpoint

from ..fileio.checkpoints import checkpoint_of_this_model

TOP = 5  # classes of a classifier

Drawn = tuple[list[np.ndarray], list[dict]]  # pictures in RGB, and predictions for JSON


def draw_classes(inferencer, images: list[np.ndarray], samples: list, score_thr: float) -> Drawn:
    pictures, predictions = [], []
    for image, sample in zip(images, samples):
        scores, labels = sample.pred_score.topk(min(TOP, len(sample.pred_score)))
        predictions.append(dict(labels=labels.tolist(), scores=scores.tolist()))
        sample.set_pred_label(labels[scores >= score_thr])  # the visualizer lists these
        pictures.append(inferencer.visualizer.visualize_cls(image, sample, draw_gt=False))
    return pictures, predictions


def draw_instances(inferencer, images: list[np.ndarray], samples: list, score_thr: float) -> Drawn:
    pictures = inferencer.visualize(images, samples, return_vis=True, pred_score_thr=score_thr)
    return pictures, inferencer.postprocess(samples)['predictions']


def draw_segments(inferencer, images: list[np.ndarray], samples: list, _) -> Drawn:
    from pycocotools import mask as coco_mask  # mmdet requires it, but mmseg does not

    predictions = []
    for sample in samples:
        segments = sample.pred_sem_seg.data[0].cpu().numpy()
        labels, areas = np.unique(segments, return_counts=True)
        masks = coco_mask.encode(np.asfortranarray(segments[..., None] == labels, np.uint8))
        for mask in masks:
            mask['counts'] = mask['counts'].decode()
        predictions.append(dict(labels=labels.tolist(), areas=areas.tolist(), masks=masks))
    return inferencer.visualize(images, samples, return_vis=True, opacity=0.5), predictions


class Task(NamedTuple):
    """What differs between the toolboxes.

    Attributes:
        inferencer: name of the inferencer.
        draw: makes pictures and predictions of an inferencer's data samples.
        score_thr: default of the least score to draw, or None if predictions have no scores.
        any_size: whether the model gets images of all sizes at the same size. Otherwise images of
            different sizes in a batch would be padded, which changes predictions, or be refused.
    """

    inferencer: str
    draw: Callable[..., Drawn]
    score_thr: float | None = None
    any_size: bool = False


TASKS = {
    'mmpretrain': Task('ImageClassificationInferencer', draw_classes, 0.0, any_size=True),
    'mmdet': Task('DetInferencer', draw_instances, 0.3),
    'mmseg': Task('MMSegInferencer', draw_segments),
}


class Predictor:
    """Predict and draw with the model of a config.

    The model is built and its checkpoint loaded when the first images arrive. Threads can share a
    predictor: they run the model at the same time, and draw in turn.

    Args:
        cfg: config of any task.
        checkpoint: path or URL; see :func:`soft_mm.fileio.set_checkpoint_reader`.
        device: device of the model.
        score_thr: least score to draw; None for the default of the task.

    Raises:
        ValueError: if the config is of no toolbox, or its predictions have no scores.
    """

    def __init__(
        self, cfg: Config, checkpoint: str, device: str, score_thr: float | None = None
    ) -> None:
        self.scope = cfg.get('default_scope')
        if self.scope not in TASKS:
            raise ValueError(
                f'default_scope of the config must be one of {", ".join(TASKS)}, got {self.scope!r}'
            )
        self.task = TASKS[self.scope]
        if score_thr is not None and self.task.score_thr is None:
            raise ValueError(
                f'score_thr must not be set, as {self.scope} predicts no scores, got {score_thr}'
            )
        self.score_thr = self.task.score_thr if score_thr is None else score_thr
        self.cfg, self.checkpoint, self.device = cfg, checkpoint, device
        # Building fills MMEngine's registries, and the visualizer draws everything into one figure.
        self.lock = Lock()

    @cached_property
    def inferencer(self):
        """The toolbox's inferencer.

        Raises:
            ValueError: if the checkpoint is refused or is not of this model.
        """
        init_default_scope(self.scope)
        build = getattr(import_module(f'{self.scope}.apis'), self.task.inferencer)
        with warnings.catch_warnings():
            # Inferencers accept weights that do not fit, so they get none, and warn about that.
            warnings.simplefilter('ignore')
            inferencer = build(self.cfg, None, device=self.device)
        meta = self._load(inferencer)
        if meta is None:
            meta = DATASETS.build({**self.cfg.test_dataloader.dataset, 'lazy_init': True}).metainfo
        if self.scope == 'mmpretrain':
            inferencer.visualizer = VISUALIZERS.get('mmpretrain.UniversalVisualizer')()
        inferencer.visualizer.dataset_meta = inferencer.model.dataset_meta = {
            key: meta.get(key) for key in ('classes', 'palette')
        }
        return inferencer

    def _load(self, inferencer) -> dict | None:
        """Load the weights and return the meta data of the dataset that they come with."""
        with checkpoint_of_this_model(self.checkpoint):
            loaded = load_checkpoint(
                inferencer.model, self.checkpoint, map_location='cpu', strict=True, logger='silent'
            )
        return loaded.get('meta', {}).get('dataset_meta')

    def __call__(
        self, images: Iterable[tuple[str, np.ndarray]], batch_size: int = 1
    ) -> Iterator[tuple[str, np.ndarray, dict]]:
        """Predict in batches of images that follow each other.

        Args:
            images: names and images, (H, W, 3), uint8, in BGR.
            batch_size: largest number of images in a batch.

        Yields:
            For each image its name, the picture, of the same kind as the image, and the prediction:
            a dict with ``labels``, ``names`` of their classes, and what the task has of ``scores``,
            ``bboxes``, ``masks`` and ``areas``.
        """
        size = (lambda item: None) if self.task.any_size else (lambda item: item[1].shape)
        for _, same_size in groupby(images, size):
            while batch := list(islice(same_size, batch_size)):
                names, arrays = zip(*batch)
                yield from zip(names, *self._predict(arrays))

    def _predict(self, images: tuple[np.ndarray, ...]) -> Drawn:
        with self.lock:
            inferencer = self.inferencer
        (data,) = inferencer.preprocess(images, batch_size=len(images))
        if self.scope == 'mmdet':  # whose inferencer returns the images too
            data = data[1]
        samples = inferencer.forward(data)
        images = [image[..., ::-1] for image in images]
        with self.lock:
            pictures, predictions = self.task.draw(inferencer, images, samples, self.score_thr)
        classes = inferencer.visualizer.dataset_meta['classes']
        for prediction in predictions:
            if classes:
                prediction['names'] = [classes[label] for label in prediction['labels']]
        return [picture[..., ::-1] for picture in pictures], predictions
