"""What the shapes of queries, keys and values must have in common."""

from torch import Tensor


def check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError unless they are ``(..., M, d)``, ``(..., N, d)`` and ``(..., N, e)``."""
    if q.shape[:-2] != k.shape[:-2] or q.shape[-1] != k.shape[-1] or k.shape[:-1] != v.shape[:-1]:
        raise ValueError(
            'q must be (..., M, d), k (..., N, d) and v (..., N, e) with equal leading dimensions, '
            f'd and N, got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}'
        )
