from .backbones import SOFT

__all__ = ['SOFT']
