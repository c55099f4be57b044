"""Solvers that apply the inverse of K2, with the papers' normalisation and scales."""

import torch
from torch import Tensor

from ..newton_inverse import newton_inverse
from ..newton_solve import newton_solve
from ..precision import at_least_fp32
from ..ridge_solve import ridge_solve

RIDGE = 0.01
SOLVERS = ('newton', 'iteration', 'ridge')
ALPHA_SCOPES = ('matrix', 'batch')


def check_solver(solver: str, alpha_scope: str) -> None:
    """Check the names of the solver and the scope of its scale.

    Raises:
        ValueError: if one of them does not exist.
    """
    for name, value, allowed in (
        ('solver', solver, SOLVERS),
        ('alpha_scope', alpha_scope, ALPHA_SCOPES),
    ):
        if value not in allowed:
            raise ValueError(f'{name} must be one of {list(allowed)}, got {value!r}')


@at_least_fp32
def solve(
    k2: Tensor, v: Tensor, sym_norm: bool, solver: str, alpha_scope: str, backend: str
) -> Tensor:
    """Apply the inverse of k2 ``(B, h, m, m)`` to v ``(B, h, m, e)`` -> ``(B, h, m, e)``.

    With ``sym_norm``, compute ``D^(-½) inverse(K2) D^(-½) v``, where D is the diagonal matrix of
    K2's row sums.
    """
    row_sums = k2.sum(-1, keepdim=True)
    if sym_norm:
        v = v * row_sums.rsqrt()
    if solver == 'ridge':
        v = ridge_solve(k2, v, RIDGE, backend)
    else:
        norm = row_sums.detach().amax(-2, keepdim=True)  # ‖K2‖₁: K2 is symmetric, entries > 0
        if alpha_scope == 'batch':
            norm = norm.amax()
        if sym_norm:
            p, alpha = k2, _halved(2 / norm.square(), k2.detach(), alpha_scope)
        else:
            eye = torch.eye(k2.shape[-1], dtype=k2.dtype, device=k2.device)
            p, alpha = k2 + RIDGE * eye, 0.9 * 2 / norm.square()
        if solver == 'newton':
            v = newton_solve(p, v, alpha, backend=backend)
        else:
            v = newton_inverse(p, alpha, backend=backend) @ v
    return v * row_sums.rsqrt() if sym_norm else v


def _halved(alpha: Tensor, p: Tensor, alpha_scope: str) -> Tensor:
    """Halve ``alpha``, at most ten times, while a column of ``|I − αP²|`` sums to more than 1.01.

    P ``(..., m, m)`` is symmetric with non-negative entries, so the sums need only the diagonal of
    P² and its product with a vector of ones, in O(m²).
    """
    columns = p @ p.sum(-1, keepdim=True)
    diagonal = torch.linalg.vector_norm(p, dim=-1, keepdim=True).square()
    # The sums are convex in α and 1 at α = 0, so if an α passes, every smaller one does. The number
    # of halvings is therefore the number of candidates that fail.
    tried = alpha * 0.5 ** torch.arange(10, device=p.device)
    sums = (1 - tried * diagonal).abs() + tried * (columns - diagonal)
    # At αλ² = 2, which K2 = I reaches, the sums pass but the iteration never converges.
    too_large = (sums > 1.01) | (tried * diagonal > 1.9)
    too_large = too_large.amax(-2 if alpha_scope == 'matrix' else (0, 1, 2), keepdim=True)
    return alpha * 0.5 ** too_large.sum(-1, keepdim=True)
