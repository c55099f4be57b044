"""Sizes that may be symbols, while a model is compiled or exported for images of any size."""

import torch
from torch import SymBool, SymInt
from torch.fx.experimental.symbolic_shapes import statically_known_true


def known(condition: bool | SymBool) -> bool:
    """Whether a condition on sizes holds for all that are traced: of a number, as it is.

    ``if`` itself would bind the graph to sizes that take the same branch. What is left out where a
    condition is known must do nothing where it holds.
    """
    return statically_known_true(condition) if isinstance(condition, SymBool) else bool(condition)


def smaller(side: int, size: int) -> int:
    """The smaller of two, as a symbol where the side is one: ``min`` would choose once for all."""
    # torch.compile traces min as torch.sym_min itself, and torch.sym_min of two numbers not at all.
    return torch.sym_min(side, size) if isinstance(side, SymInt) else min(side, size)
