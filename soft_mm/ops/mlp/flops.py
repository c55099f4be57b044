"""Multiply-adds of the op from the shapes of its arguments."""

from math import prod


def executed(x: list[int], weight1: list[int], bias1: list[int], weight2: list[int], *_) -> int:
    """The two linear layers."""
    return prod(x[:-1]) * (prod(weight1) + prod(weight2))
