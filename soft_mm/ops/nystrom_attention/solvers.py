"""Solvers that apply the inverse of K2, with the papers' normalisation and scales."""

import torch
from torch import Tensor

from ..backend import choose_backend, runs_triton
from ..gaussian_kernel import gaussian_kernel
from ..newton_inverse import newton_inverse
from ..newton_solve import newton_solve
from ..precision import at_least_fp32
from ..ridge_solve import ridge_solve
from .scale import MARGIN, RIDGE, newton_scale

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


def solve_landmarks(
    landmarks: Tensor, v: Tensor, sym_norm: bool, solver: str, alpha_scope: str, backend: str | None
) -> Tensor:
    """:func:`solve` for K2 of landmarks ``(B, h, m, d)``; Triton does all at once for a scale per matrix."""
    if (
        (solver, alpha_scope) == ('newton', 'matrix')
        and choose_backend(backend, v.device) == 'triton'
        and runs_triton('nystrom_attention', v.device)
    ):
        from . import triton_kernels

        if triton_kernels.supports_landmarks(landmarks, v):
            return triton_kernels.landmark_solve(landmarks, v, sym_norm)[0]
    k2 = gaussian_kernel(landmarks, landmarks, backend)
    return solve(k2, v, sym_norm, solver, alpha_scope, backend)


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
        p, alpha = newton_start(k2, row_sums.detach(), sym_norm, alpha_scope, backend)
        if solver == 'newton':
            v = newton_solve(p, v, alpha, backend=backend)
        else:
            v = newton_inverse(p, alpha, backend=backend) @ v
    return v * scale if sym_norm else v


def newton_start(
    k2: Tensor, row_sums: Tensor, sym_norm: bool, alpha_scope: str, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """The matrix ``(B, h, m, m)`` that the iteration inverts, and its scale ``(B, h, 1, 1)``.

    ``row_sums`` ``(B, h, m, 1)`` are those of k2; with the scope 'batch' there is one scale for all.
    """
    if sym_norm:
        return k2, newton_scale(k2.detach(), row_sums, alpha_scope, backend)
    eye = torch.eye(k2.shape[-1], dtype=k2.dtype, device=k2.device)
    # K2 is symmetric with positive entries, so its 1-norm is the largest sum.
    norm = row_sums.amax((0, 1, 2) if alpha_scope == 'batch' else -2, keepdim=True)
    return k2 + RIDGE * eye, MARGIN * 2 / norm.square()
