from ..registry import DATASETS
from .checked import Checked


class ADE20KDataset(Checked, DATASETS.get('mmseg.ADE20KDataset')):
    """mmseg's ADE20KDataset with input checks."""
