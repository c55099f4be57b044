from pathlib import Path

from ..registry import DATASETS
from .checked import Checked
from .coco_file import check_coco_file


class CocoDataset(Checked, DATASETS.get('mmdet.CocoDataset')):
    """mmdet's CocoDataset with input checks; validates all annotations when they are loaded."""

    def load_data_list(self) -> list[dict]:
        with_masks = any(
            getattr(transform, 'with_mask', False) for transform in self.pipeline.transforms
        )
        check_coco_file(Path(self.ann_file), self.metainfo['classes'], with_masks)
        return super().load_data_list()
