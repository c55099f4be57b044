"""Multiply-adds of the op from the shapes of its arguments."""

from math import prod


def formula(a: list[int], z: list[int], iterations: int) -> int:
    """Four products of m×m matrices per iteration."""
    return 4 * iterations * prod(a) * a[-1]


executed = formula
