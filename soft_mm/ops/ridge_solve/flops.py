"""Multiply-adds of the op from the shapes of its arguments."""

from math import prod


def formula(p: list[int], v: list[int], ridge: float) -> int:
    """A Cholesky factor, and two triangular solves with it."""
    return prod(p) * p[-1] // 6 + prod(p) * v[-1]


executed = formula
