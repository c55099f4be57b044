from ..registry import DATASETS
from .checked import Checked


class ImageNet(Checked, DATASETS.get('mmpretrain.ImageNet')):
    """mmpretrain's dataset, with checks."""

    def load_data_list(self) -> list[dict]:
        try:
            return super().load_data_list()
        except ValueError as error:
            raise ValueError(
                f"{self.ann_file} must have lines as 'class/image.jpg 0', a file and "
                f'the number of its class: {error}'
            ) from None
