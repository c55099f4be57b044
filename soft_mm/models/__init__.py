from .backbones import SOFT, InLineCSwin, InLineDeiT, InLinePVT, InLineSwin
from .zoo import build_backbone, list_backbones

__all__ = [
    'SOFT',
    'InLineCSwin',
    'InLineDeiT',
    'InLinePVT',
    'InLineSwin',
    'build_backbone',
    'list_backbones',
]
