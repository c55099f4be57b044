"""Solvers that apply the inverse of K2, with the papers' normalisation and scales."""

from torch import Tensor

from ..backend import choose_backend
from ..gaussian_kernel import gaussian_kernel
from ..newton_inverse import newton_inverse
from ..newton_solve import newton_solve
from ..precision import at_least_fp32
from ..ridge_solve import ridge_solve
from .landmark_solve import landmark_solve
from .scale import RIDGE, newton_start

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
    """:func:`solve` for K2 of landmarks ``(B, h, m, d)``, in one op for 'newton' and a scale per matrix."""
    chosen = choose_backend(backend, v.device)
    if (solver, alpha_scope) == ('newton', 'matrix') and chosen != 'standard':
        return landmark_solve(landmarks, v, sym_norm, chosen)[0]
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
