"""Multiply-adds of the op from the shapes of its arguments."""

from collections import Counter
from math import prod

from ..newton_inverse import flops as newton_inverse
from .rational import DEGREE, MIN_ITERATIONS


def formula(p: list[int], v: list[int], root: list[int], *_) -> Counter[str]:
    """The papers' 20 iterations, and the product of the inverse with v."""
    return Counter(
        newton_inverse=newton_inverse.formula(p, root, MIN_ITERATIONS), matmul=prod(p) * v[-1]
    )


def executed(p: list[int], v: list[int], *_) -> int:
    """An inverse by Cholesky or by blocks, and products for the polynomial, the pole and the zero."""
    return prod(p) * p[-1] // 2 + prod(p) * v[-1] * (DEGREE + 4)
