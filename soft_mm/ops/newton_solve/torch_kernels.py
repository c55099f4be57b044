"""The inverse from a Cholesky factor, and products that add other terms, in PyTorch's operators."""

from collections.abc import Callable

import torch
from torch import Tensor


def invert(matrices: Tensor) -> Tensor:
    """Inverses of positive definite matrices ``(..., m, m)``."""
    return torch.cholesky_inverse(torch.linalg.cholesky_ex(matrices)[0])


def factor(
    out: Tensor, p: Tensor, root: Tensor, pole: float, invert: Callable[[Tensor], Tensor] = invert
) -> None:
    """Write ``P (P + δI)⁻¹`` of p ``(L, m, m)`` to ``out`` for ``δ = pole/root``, root ``(L, 1, 1)``."""
    shift = pole / root
    shifted = p.clone()
    shifted.diagonal(dim1=-2, dim2=-1).add_(shift[..., 0])
    inverse = invert(shifted)
    torch.mul(inverse, -shift, out=out)
    # Where an eigenvalue is small, 1 − δ·inverse_ii loses the digits that P·inverse keeps.
    out.diagonal(dim1=-2, dim2=-1).copy_(inverse.mul_(p).sum(-1))


def product(
    matrix: Tensor,
    y: Tensor,
    factor: float,
    *terms: tuple[float, Tensor],
    out: Tensor | None = None,
) -> Tensor:
    """``factor·matrix·y + Σ c·x``, matrix ``(L, m, m)``, y and x ``(L, m, e)``."""
    (beta, total), *others = terms or [(0, y)]
    for c, x in others:
        total = torch.add(total, x, alpha=c / beta)
    return torch.baddbmm(total, matrix, y, beta=beta, alpha=factor, out=out)
