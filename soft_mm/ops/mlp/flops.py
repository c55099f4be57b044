"""Multiply-adds of the op from the shapes of its arguments."""

from collections import Counter
from math import prod


def formula(
    x: list[int], weight1: list[int], bias1: list[int], weight2: list[int], *_
) -> Counter[str]:
    """The two linear layers."""
    return Counter(linear=prod(x[:-1]) * (prod(weight1) + prod(weight2)))


def executed(*shapes) -> int:
    return formula(*shapes).total()
