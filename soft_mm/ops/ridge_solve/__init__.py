"""Regularised solution of symmetric positive systems."""

from torch import Tensor

from ..backend import choose_backend
from ..precision import at_least_fp32
from .cholesky import cholesky_ridge_solve
from .iterated import iterated_ridge_solve


@at_least_fp32
def ridge_solve(p: Tensor, v: Tensor, ridge: float = 0.01, backend: str | None = None) -> Tensor:
    """``(P + ridge·I)⁻¹ v``, exactly. The gradient is the implicit one, as for Newton's inverse.

    Args:
        p: ``(..., m, m)``, symmetric and positive semi-definite; may be singular.
        v: ``(..., m, e)``, same leading dimensions.
        ridge: what is added to the diagonal, over 0. Where it is below ``λmax`` by more than the
            digits of fp32, 1e-6 or so, the result is not a number.
        backend: 'standard' iterates; all others solve by a Cholesky factor.

    Returns:
        ``(..., m, e)`` in fp32 or better.

    Raises:
        ValueError: if the shapes do not go together or ``ridge`` is not over 0, or
            the backend does not exist.
    """
    if p.shape[:-1] != v.shape[:-1] or p.shape[-1] != p.shape[-2]:
        raise ValueError(
            f'p must be (..., m, m) and v (..., m, e) with equal leading dimensions '
            f'and m, got {tuple(p.shape)} and {tuple(v.shape)}'
        )
    if not ridge > 0:
        raise ValueError(f'ridge must be over 0, got {ridge}')
    if choose_backend(backend, p.device) == 'standard':
        return iterated_ridge_solve(p, v, ridge)
    return cholesky_ridge_solve(p, v, ridge)
