"""Multiply-adds of the op, from the shapes of its arguments."""

from math import prod


def formula(q: list[int], k: list[int]) -> int:
    """``q·kᵀ``; the norms do not count, because they are elementwise."""
    return prod(q) * k[-2]


executed = formula
