from .backbones import SOFT, InLineCSwin, InLineDeiT, InLinePVT, InLineSwin

__all__ = ['SOFT', 'InLineCSwin', 'InLineDeiT', 'InLinePVT', 'InLineSwin']
