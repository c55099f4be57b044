"""The rational function in products of matrices, for runtimes without a Cholesky factorisation."""

import math

import torch
from torch import Tensor

from .rational import POLE, apply


def standard_newton_solve(p: Tensor, v: Tensor, alpha: Tensor, iterations: int) -> Tensor:
    """p ``(..., m, m)``, v ``(..., m, e)``, alpha ``(..., 1, 1)`` -> ``(..., m, e)``."""
    root = alpha.sqrt() * 2.0 ** (iterations / 2)
    # αλ² < 2, so no eigenvalue of √s·P is larger.
    complement = factor(p, root, math.sqrt(2 * 2.0**iterations))
    return complement @ apply(complement, p, v, root, product)


def factor(p: Tensor, root: Tensor, largest: float) -> Tensor:
    """``P (P + δI)⁻¹`` ``(..., m, m)`` for ``δ = POLE/root``; √s·P has no eigenvalue above ``largest``.

    Newton's iteration for the inverse of ``A = P/δ + I``. All eigenvalues of VA start at most
    ``error`` away from 1. A step V(2I − AV) squares the distances, which are then below 1, and a
    scale makes them symmetric again.
    """
    eye = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)
    a = p * (root / POLE) + eye
    condition, precision = 1 + largest / POLE, torch.finfo(p.dtype).eps
    error, start = (condition - 1) / (condition + 1), 2 / (condition + 1)
    scale = 2 / (2 - error**2)
    v = scale * start * (2 * eye - start * a)  # the first step, from a multiple of I
    while (error := error**2 * scale / 2) > precision:
        scale = 2 / (2 - error**2)
        v = scale * (2 * v - v @ a @ v)
    # Where an eigenvalue is small, 1 − v_ii loses the digits that P·V keeps.
    diagonal = (v * p).sum(-1, keepdim=True) * (root / POLE)
    return torch.where(eye.bool(), diagonal, -v)


def product(matrix: Tensor, y: Tensor, factor: float, *terms: tuple[float, Tensor]) -> Tensor:
    """``factor·matrix·y + Σ c·x``."""
    return sum((c * x for c, x in terms), factor * (matrix @ y))
