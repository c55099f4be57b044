"""Multiply-adds of the op from the shapes of its arguments."""

from math import prod


def formula(q: list[int], k: list[int], *_) -> int:
    """The product ``q·kᵀ``; the norms are elementwise and not counted."""
    return prod(q) * k[-2]


executed = formula
