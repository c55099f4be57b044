"""Ridge-regularised solution of symmetric positive semi-definite systems."""

from torch import Tensor

from ..backend import choose_backend
from ..precision import at_least_fp32
from .cholesky import cholesky_ridge_solve
from .iterated import iterated_ridge_solve


@at_least_fp32
def ridge_solve(p: Tensor, v: Tensor, ridge: float = 0.01, backend: str | None = None) -> Tensor:
    """Solve ``(P + ridge·I) y = v`` for y.

    Unlike in :func:`newton_solve`, small eigenvalues are not damped. The gradient is implicit.

    Args:
        p: ``(..., m, m)``, symmetric and positive semi-definite; may be singular.
        v: ``(..., m, e)``, same leading dimensions.
        ridge: added to the diagonal, greater than 0. Below about ``1e-6·λmax``, the precision of
            fp32, the factorisation may fail and the result is NaN.
        backend: 'standard' uses Newton's iteration; all others use a Cholesky factor.

    Returns:
        ``(..., m, e)`` in fp32 or better.

    Raises:
        ValueError: if p is not square, the leading dimensions or ``m`` differ, ``ridge`` is not
            greater than 0 or the backend does not exist.
    """
    if p.shape[:-1] != v.shape[:-1] or p.shape[-1] != p.shape[-2]:
        raise ValueError(
            f'p must be (..., m, m) and v (..., m, e) with equal leading dimensions '
            f'and m, got {tuple(p.shape)} and {tuple(v.shape)}'
        )
    if not ridge > 0:
        raise ValueError(f'ridge must be greater than 0, got {ridge}')
    if choose_backend(backend, p.device) == 'standard':
        return iterated_ridge_solve(p, v, ridge)
    return cholesky_ridge_solve(p, v, ridge)
