"""Input checks for datasets, whose errors name the file, the value and what is allowed."""

from numbers import Integral
from pathlib import Path

import numpy as np


class Checked:
    """Mixin for a toolbox's dataset that checks the list of samples, and each sample as it loads.

    Raises:
        ValueError: if no sample is left, or a sample is invalid or fails to load; names its files.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        transforms = [self._check_listed]
        for transform in self.pipeline.transforms:
            if type(transform).__name__ == 'LoadAnnotations':
                transforms += [self._check_size, transform, self._check_map]
            else:
                transforms.append(transform)
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
        except Exception as error:  # transforms raise any exception and do not name the file
            files = ' with '.join(_files(self.get_data_info(idx)))
            raise ValueError(f'{files}: {error}') from error

    def _check_listed(self, sample: dict) -> dict:
        """Check a sample before anything is loaded."""
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

    def _check_size(self, sample: dict) -> dict:
        """Check the size of a sample before its masks are drawn, which takes memory for all pixels."""
        size = sample['ori_shape']
        listed = sample.get('height', size[0]), sample.get('width', size[1])
        if listed != size:
            raise ValueError(
                'height and width in the annotations must be those of the image, '
                f'{size}, got {listed}'
            )
        return sample

    def _check_map(self, sample: dict) -> dict:
        """Check a segmentation map, if there is one."""
        if 'gt_seg_map' not in sample:
            return sample
        labels, size = sample['gt_seg_map'], sample['ori_shape']
        if labels.shape != size:
            raise ValueError(
                "the annotation must be a greyscale or palette image of the image's size, "
                f'{size}, got {labels.shape}'
            )
        number = len(self.metainfo['classes'])
        invalid = labels[(labels >= number) & (labels != self.ignore_index)]
        if len(invalid):
            # With reduce_zero_label, classes in the file start at 1 and 0 is ignored.
            first = int(self.reduce_zero_label)
            raise ValueError(
                f'the annotation must have classes from {first} to '
                f'{number - 1 + first}, or {"0 or " * first}{self.ignore_index} to '
                f'ignore a pixel, got {(np.unique(invalid).astype(int) + first).tolist()}'
            )
        return sample


def _files(sample: dict) -> list[str]:
    return [sample[key] for key in ('img_path', 'seg_map_path') if sample.get(key)]
