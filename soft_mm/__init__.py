"""Softmax-free and injective linear-attention backbones for OpenMMLab.

Importing this package registers every backbone in :data:`soft_mm.registry.MODELS`, a child of
MMEngine's root registry. It requires only torch and MMEngine.
"""

from importlib.util import find_spec

_INSTALL = {'torch': 'torch', 'mmengine': 'onedl-mmengine (or the official mmengine)'}
_missing = [hint for module, hint in _INSTALL.items() if find_spec(module) is None]
if _missing:
    raise ImportError(f'soft_mm needs {" and ".join(_missing)}: install with pip')

from .models import (  # noqa: E402
    SOFT,
    InLineCSwin,
    InLineDeiT,
    InLinePVT,
    InLineSwin,
    build_backbone,
    list_backbones,
)
from .registry import MODELS  # noqa: E402

__version__ = '0.1.0'
__all__ = [
    'MODELS',
    'SOFT',
    'InLineCSwin',
    'InLineDeiT',
    'InLinePVT',
    'InLineSwin',
    '__version__',
    'build_backbone',
    'list_backbones',
]
