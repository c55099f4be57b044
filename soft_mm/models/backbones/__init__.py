from .base import Backbone
from .inline_cswin import InLineCSwin
from .inline_deit import InLineDeiT
from .inline_pvt import InLinePVT
from .inline_swin import InLineSwin
from .soft import SOFT

__all__ = ['SOFT', 'Backbone', 'InLineCSwin', 'InLineDeiT', 'InLinePVT', 'InLineSwin']
