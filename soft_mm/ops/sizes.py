"""Symbolic sizes, which occur while a model is compiled or exported for images of any size."""

import torch
from torch import SymBool, SymInt
from torch.fx.experimental.symbolic_shapes import statically_known_true

TRACES_KNOWN = torch.__version__ >= (
    2,
    6,
)  # earlier torch.compile cannot trace statically_known_true


def known(condition: bool | SymBool) -> bool:
    """Whether a condition on sizes is known to hold for every size of the traced graph.

    Plain bools are returned unchanged. For a symbolic condition, ``if condition`` would specialise
    the graph to sizes that take the same branch, whereas this returns False unless the condition
    always holds. Code under ``if not known(condition)`` therefore also runs for sizes for which the
    condition holds, and must be right for them too.
    """
    # While torch.compile traces, a SymBool passes for a bool.
    if isinstance(condition, SymBool) or TRACES_KNOWN and isinstance(condition, bool):
        return statically_known_true(condition)
    return bool(condition)


def smaller(side: int, size: int) -> int:
    """Like ``min``, which would specialise the graph to one of the two if the side is symbolic."""
    # torch.compile traces min as torch.sym_min, but fails on torch.sym_min of two plain integers.
    return torch.sym_min(side, size) if isinstance(side, SymInt) else min(side, size)
