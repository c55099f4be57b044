"""The toolboxes' datasets, with errors that name the file, the value and what is allowed.

A class is made of a toolbox's own where a config asks for it: nothing here imports a toolbox.
"""

from functools import cache
from numbers import Integral
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset

from ..registry import DATASETS
from .coco_file import check_coco_file


class Checked:
    """What is checked of any dataset, when its list is made and whenever a sample is loaded."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        transforms = [self._check_listed]
        for transform in self.pipeline.transforms:
            transforms.append(transform)
            if type(transform).__name__ == 'LoadAnnotations':
                transforms.append(self._check_loaded)
        self.pipeline.transforms = transforms

    def filter_data(self) -> list[dict]:
        kept = super().filter_data()
        if not kept:
            raise ValueError(
                f'{type(self).__name__} needs images: {len(self.data_list)} are listed in '
                f'{self.ann_file or self.data_prefix["img_path"]}, and none is kept by '
                f'filter_cfg={self.filter_cfg}'
            )
        return kept

    def prepare_data(self, idx: int) -> object:
        try:
            return super().prepare_data(idx)
        except Exception as error:  # of any kind: what loads and transforms does not name the file
            files = ' with '.join(_files(self.get_data_info(idx)))
            raise ValueError(f'{files}: {error}') from error

    def _check_listed(self, sample: dict) -> dict:
        """Before anything is loaded."""
        for file in _files(sample):
            if not Path(file).stat().st_size:
                raise ValueError(f'{Path(file).name} must hold an image, got 0 bytes')
        label, classes = sample.get('gt_label'), self.metainfo.get('classes')
        if isinstance(label, Integral) and classes and not 0 <= label < len(classes):
            raise ValueError(
                f'the label must be from 0 to {len(classes) - 1}, as there are '
                f'{len(classes)} classes, got {label}'
            )
        return sample

    def _check_loaded(self, sample: dict) -> dict:
        """After the annotations are loaded."""
        size = sample['ori_shape']
        listed = sample.get('height', size[0]), sample.get('width', size[1])
        if listed != size:
            raise ValueError(
                'height and width in the annotations must be those of the image, '
                f'{size}, got {listed}'
            )
        if 'gt_seg_map' in sample:
            self._check_map(sample['gt_seg_map'], size)
        return sample

    def _check_map(self, labels: np.ndarray, size: tuple[int, int]) -> None:
        if labels.shape != size:
            raise ValueError(
                "the annotation must be grey or with a palette, of the image's size, "
                f'{size}, got {labels.shape}'
            )
        number = len(self.metainfo['classes'])
        beyond = labels[(labels >= number) & (labels != self.ignore_index)]
        if len(beyond):
            first = int(self.reduce_zero_label)  # in the file, where 0 is none then
            raise ValueError(
                f'the annotation must have classes from {first} to '
                f'{number - 1 + first}, or {"0 or " * first}{self.ignore_index} for '
                f'none, got {(np.unique(beyond).astype(int) + first).tolist()}'
            )


class CheckedCoco(Checked):
    def load_data_list(self) -> list[dict]:
        with_masks = any(
            getattr(transform, 'with_mask', False) for transform in self.pipeline.transforms
        )
        check_coco_file(Path(self.ann_file), self.metainfo['classes'], with_masks)
        return super().load_data_list()


class CheckedImageNet(Checked):
    def load_data_list(self) -> list[dict]:
        try:
            return super().load_data_list()
        except ValueError as error:
            raise ValueError(
                f"{self.ann_file} must have lines as 'class/image.jpg 0', a file and "
                f'the number of its class: {error}'
            ) from None


def _files(sample: dict) -> list[str]:
    return [sample[key] for key in ('img_path', 'seg_map_path') if sample.get(key)]


@cache
def _make(name: str, checks: type[Checked]) -> type[BaseDataset]:
    return type(name.split('.')[1], (checks, DATASETS.get(name)), {})


@DATASETS.register_module(name='CocoDataset')
def coco_dataset(**kwargs) -> BaseDataset:
    return _make('mmdet.CocoDataset', CheckedCoco)(**kwargs)


@DATASETS.register_module(name='ADE20KDataset')
def ade20k_dataset(**kwargs) -> BaseDataset:
    return _make('mmseg.ADE20KDataset', Checked)(**kwargs)


@DATASETS.register_module(name='ImageNet')
def imagenet(**kwargs) -> BaseDataset:
    return _make('mmpretrain.ImageNet', CheckedImageNet)(**kwargs)
