"""Newton's inverse of symmetric positive semi-definite matrices, applied to values."""

from torch import Tensor

from ..backend import choose_backend, describe, log_fallback, runs_triton
from ..newton_inverse import newton_inverse
from ..precision import at_least_fp32
from ..sizes import known
from .rational import MIN_ITERATIONS, MIN_SIZE, is_worthwhile, rational_newton_solve
from .standard import standard_newton_solve


@at_least_fp32
def newton_solve(
    p: Tensor, v: Tensor, alpha: Tensor, iterations: int = 20, backend: str | None = None
) -> Tensor:
    """Compute ``newton_inverse(p, alpha, iterations) @ v``, at a fraction of its cost for large m.

    The gradient is implicit, as in :func:`newton_inverse`. For 20 iterations or more, a rational
    function of p replaces them from 128 rows on, or from 65 with Triton.

    Args:
        p: ``(..., m, m)``, symmetric and positive semi-definite; may be singular.
        v: ``(..., m, e)``, same leading dimensions.
        alpha: ``(..., 1, 1)`` or a shape that broadcasts to it; ``0 < α·λmax² < 2``.
        iterations: number of iterations, at least 0.
        backend: 'triton' runs kernels of its own and supports fp32; 'standard' evaluates the
            rational function in products of matrices, for a symbolic m too. Passed to
            :func:`newton_inverse` when p is iterated.

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
    m = p.shape[-1]
    if backend == 'standard' and iterations >= MIN_ITERATIONS and not known(m < MIN_SIZE['torch']):
        return standard_newton_solve(p, v, alpha, iterations)
    fused = backend == 'triton' and _runs_triton(p, v)
    if backend != 'standard' and is_worthwhile(m, iterations, fused):
        return rational_newton_solve(p, v, alpha.expand(*p.shape[:-2], 1, 1), iterations, fused)
    # On a CPU and inside the Triton kernel the check for convergence needs no synchronisation.
    until_converged = p.device.type == 'cpu' or fused and m < MIN_SIZE['triton']
    return newton_inverse(p, alpha, iterations, until_converged, backend) @ v


def _runs_triton(p: Tensor, v: Tensor) -> bool:
    if not runs_triton('newton_solve', p.device):
        return False
    from . import triton_kernels

    if not (supported := triton_kernels.supports(p, v)):
        log_fallback('newton_solve', 'triton', describe(p, v))
    return supported
