from ..registry import DATASETS
from .checked import Checked


class ImageNet(Checked, DATASETS.get('mmpretrain.ImageNet')):
    """mmpretrain's ImageNet with input checks."""

    def load_data_list(self) -> list[dict]:
        try:
            return super().load_data_list()
        except ValueError as error:
            raise ValueError(
                f"{self.ann_file} must have lines such as 'class/image.jpg 0', with a file "
                f'and its class index: {error}'
            ) from None
