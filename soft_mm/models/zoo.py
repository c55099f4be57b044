"""Backbones by name, for programs that have no configs."""

import fnmatch
from difflib import get_close_matches
from pathlib import Path

from ..fileio.backbone import load_backbone
from .backbones import SOFT, Backbone, InLineCSwin, InLineDeiT, InLinePVT, InLineSwin

# Class of each family, and the arguments that set it apart from another family of the class.
FAMILIES = {
    'soft': (SOFT, {}),
    'soft-norm': (SOFT, dict(sym_norm=True)),
    'inline-deit': (InLineDeiT, {}),
    'inline-pvt': (InLinePVT, {}),
    'inline-swin': (InLineSwin, {}),
    'inline-cswin': (InLineCSwin, {}),
}
BACKBONES = {
    f'{family}-{arch}': (cls, dict(fixed, arch=arch))
    for family, (cls, fixed) in FAMILIES.items()
    for arch in cls.arch_zoo
}


def list_backbones(pattern: str = '*') -> list[str]:
    """Names of the backbones that match a shell pattern, such as ``'*pvt*'``."""
    return fnmatch.filter(BACKBONES, pattern)


def build_backbone(
    name: str, checkpoint: str | Path | None = None, *, trust_pickle: bool = False, **kwargs
) -> Backbone:
    """Build a backbone by its name, initialised at random or from a checkpoint.

    It maps images ``(B, 3, H, W)`` to a tuple of feature maps ``(B, C, ⌈H/s⌉, ⌈W/s⌉)``, whose C and s
    are in its attributes ``out_channels`` and ``out_strides``.

    Args:
        name: one of :func:`list_backbones`; the ImageNet configs begin with the same names.
        checkpoint: path or URL of a checkpoint of the backbone, or of a classifier, detector or
            segmentor that contains it, see :func:`soft_mm.fileio.load_backbone`.
        trust_pickle: allow the checkpoint to run code when it is loaded.
        **kwargs: arguments of the class, such as ``out_indices``, see :class:`Backbone`.

    Raises:
        OSError: if the checkpoint cannot be read or downloaded.
        TypeError: if the class does not have an argument; lists those it has.
        ValueError: for an unknown name, with similar ones; if the value of an argument is invalid; if
            the checkpoint belongs to another model or could run code.
    """
    if name not in BACKBONES:
        similar = get_close_matches(str(name), BACKBONES, n=5, cutoff=0)
        raise ValueError(
            f'name must be one of soft_mm.list_backbones(), for instance {", ".join(similar)}, '
            f'got {name!r}'
        )
    cls, fixed = BACKBONES[name]
    backbone = cls(**fixed, **kwargs)
    if checkpoint is not None:
        load_backbone(backbone, checkpoint, trust_pickle)
    return backbone
