"""Newton's inverse of symmetric positive semi-definite matrices, applied to values."""

from torch import Tensor

from ..backend import choose_backend
from ..newton_inverse import newton_inverse
from ..precision import at_least_fp32
from .rational import is_worthwhile, rational_newton_solve


@at_least_fp32
def newton_solve(
    p: Tensor, v: Tensor, alpha: Tensor, iterations: int = 20, backend: str | None = None
) -> Tensor:
    """Compute ``newton_inverse(p, alpha, iterations) @ v``, at a fraction of its cost for large m.

    The gradient is implicit, as in :func:`newton_inverse`. For at least 160 rows and 20 iterations,
    a rational function of p replaces the iterations.

    Args:
        p: ``(..., m, m)``, symmetric and positive semi-definite; may be singular.
        v: ``(..., m, e)``, same leading dimensions.
        alpha: ``(..., 1, 1)`` or a shape that broadcasts to it; ``0 < α·λmax² < 2``.
        iterations: number of iterations, at least 0.
        backend: passed to :func:`newton_inverse` when p is iterated; 'standard' always iterates.

    Returns:
        ``(..., m, e)`` in fp32 or better.

    Raises:
        ValueError: if the leading dimensions or ``m`` differ, ``iterations`` is negative or the
            backend does not exist.
    """
    if p.shape[:-1] != v.shape[:-1]:
        raise ValueError(
            f'p must be (..., m, m) and v (..., m, e) with equal leading dimensions '
            f'and m, got {tuple(p.shape)} and {tuple(v.shape)}'
        )
    backend = choose_backend(backend, p.device)
    if backend != 'standard' and is_worthwhile(p.shape[-1], iterations):
        return rational_newton_solve(p, v, alpha.expand(*p.shape[:-2], 1, 1), iterations)
    # On a CPU and inside the Triton kernel the check for convergence needs no synchronisation.
    until_converged = backend == 'triton' or p.device.type == 'cpu'
    return newton_inverse(p, alpha, iterations, until_converged, backend) @ v
