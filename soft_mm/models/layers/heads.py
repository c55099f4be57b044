"""Split channels into attention heads."""

from torch import Tensor


def check_heads(dims: int, num_heads: int) -> None:
    """Check that the channels split evenly into heads.

    Raises:
        ValueError: if ``num_heads`` does not divide ``dims``.
    """
    if num_heads < 1 or dims % num_heads:
        raise ValueError(f'num_heads must divide the {dims} channels, got {num_heads}')


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``(B, N, C)`` -> ``(B, num_heads, N, C / num_heads)``."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)
