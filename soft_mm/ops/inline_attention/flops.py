"""Multiply-adds of the self-attention from the shapes of its arguments."""


def executed(
    x: list[int], mean: list[int], weight: list[int], bias: list[int], num_heads: int
) -> int:
    """Three products over all tokens, and products of small matrices."""
    batch, num_tokens, dims = x
    return batch * dims**2 * (3 * num_tokens + dims + 2 * dims // num_heads)
