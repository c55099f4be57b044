"""Multiply-adds of the op from the shapes of its arguments."""

from collections import Counter
from math import prod

from ..newton_inverse import flops as newton_inverse
from .rational import DEGREE


def formula(p: list[int], v: list[int], alpha: list[int], iterations: int) -> Counter[str]:
    """The iterations, and the product of the inverse with v."""
    return Counter(
        newton_inverse=newton_inverse.formula(p, alpha, iterations), matmul=prod(p) * v[-1]
    )


def executed(p: list[int], v: list[int], *_) -> int:
    """Five eighths of P², a Cholesky factor, and triangular solves with it."""
    return prod(p) * p[-1] * 19 // 24 + prod(p) * v[-1] * (DEGREE + 2)
