"""Shape checks of queries, keys and values, the split into heads, and ceiling division."""

from torch import Tensor


def check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Check that q, k and v are ``(..., M, d)``, ``(..., N, d)`` and ``(..., N, e)``.

    Raises:
        ValueError: if the leading dimensions, ``d`` or ``N`` differ.
    """
    if q.shape[:-2] != k.shape[:-2] or q.shape[-1] != k.shape[-1] or k.shape[:-1] != v.shape[:-1]:
        raise ValueError(
            'q must be (..., M, d), k (..., N, d) and v (..., N, e) with equal leading dimensions, '
            f'd and N, got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}'
        )


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``(B, N, C)`` -> ``(B, num_heads, N, C / num_heads)``."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def split_qkv(qkv: Tensor, num_heads: int) -> Tensor:
    """``(B, N, 3·C)`` -> q, k and v, ``(3, B, num_heads, N, C / num_heads)``."""
    return qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)


def ceil_div(side: int, size: int) -> int:
    """``side / size``, rounded up."""
    # Not -(-side // size): ONNX rounds integer division towards zero.
    return (side + size - 1) // size
