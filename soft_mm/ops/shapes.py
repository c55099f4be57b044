"""Shapes of tensors: the check of queries, keys and values, and division that rounds up."""

from torch import Tensor


def check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError unless they are ``(..., M, d)``, ``(..., N, d)`` and ``(..., N, e)``."""
    if q.shape[:-2] != k.shape[:-2] or q.shape[-1] != k.shape[-1] or k.shape[:-1] != v.shape[:-1]:
        raise ValueError(
            'q must be (..., M, d), k (..., N, d) and v (..., N, e) with equal leading dimensions, '
            f'd and N, got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}'
        )


def ceil_div(side: int, size: int) -> int:
    """How many times ``size`` is needed to cover ``side``."""
    # −(−side // size) differs in ONNX, whose integer division rounds towards zero.
    return (side + size - 1) // size
