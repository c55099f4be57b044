"""Solvers that apply the inverse of K2, with the papers' normalisation and scales."""

import torch
from torch import Tensor

from ..newton_inverse import newton_inverse
from ..newton_solve import newton_solve
from ..precision import at_least_fp32
from ..ridge_solve import ridge_solve
from .scale import newton_scale

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
        scale = row_sums.rsqrt()
        v = v * scale
    if solver == 'ridge':
        v = ridge_solve(k2, v, RIDGE, backend)
    else:
        sums = row_sums.detach()
        if sym_norm:
            p, alpha = k2, newton_scale(k2.detach(), sums, alpha_scope, backend)
        else:
            eye = torch.eye(k2.shape[-1], dtype=k2.dtype, device=k2.device)
            # K2 is symmetric with positive entries, so its 1-norm is the largest sum.
            norm = sums.amax((0, 1, 2) if alpha_scope == 'batch' else -2, keepdim=True)
            p, alpha = k2 + RIDGE * eye, 0.9 * 2 / norm.square()
        if solver == 'newton':
            v = newton_solve(p, v, alpha, backend=backend)
        else:
            v = newton_inverse(p, alpha, backend=backend) @ v
    return v * scale if sym_norm else v
