"""Multiply-adds of the op from the shapes of its arguments."""

from collections import Counter
from math import prod


def formula(q: list[int], k: list[int], v: list[int], *_) -> Counter[str]:
    """The product of queries and keys, and that of weights and values."""
    return Counter(matmul=prod(q[:-1]) * k[-2] * (q[-1] + v[-1]))


def executed(q: list[int], k: list[int], v: list[int], *_) -> int:
    return formula(q, k, v).total()
