"""Multiply-adds of the op from the shapes of its arguments."""

from math import prod


def formula(p: list[int], alpha: list[int], iterations: int, *_) -> int:
    """Two products of m×m matrices per iteration."""
    return 2 * iterations * prod(p) * p[-1]


executed = formula  # an upper bound: the iteration may stop early once converged
