"""Multiply-adds of the op ``soft_mm::landmark_solve`` from the shapes of its arguments."""

from collections import Counter

from ..gaussian_kernel import flops as gaussian_kernel
from ..newton_solve import flops as newton_solve
from ..newton_solve.rational import MIN_SIZE


def formula(landmarks: list[int], v: list[int], *_) -> Counter[str]:
    """K2, and what the papers do with it."""
    matrix = [*landmarks[:-1], landmarks[-2]]
    return Counter(
        gaussian_kernel=gaussian_kernel.formula(landmarks, landmarks)
    ) + newton_solve.formula(matrix, v, [])


def executed(landmarks: list[int], v: list[int], *_) -> int:
    """K2, and the iterations or, for many landmarks, the rational function."""
    matrix = [*landmarks[:-1], landmarks[-2]]
    if landmarks[-2] >= MIN_SIZE['torch']:
        return gaussian_kernel.executed(landmarks, landmarks) + newton_solve.executed(matrix, v)
    return formula(landmarks, v).total()
