"""Newton's inverse of symmetric positive matrices, applied to values without being formed."""

from torch import Tensor

from ..backend import choose_backend
from ..newton_inverse import newton_inverse
from ..precision import at_least_fp32
from .rational import is_worthwhile, rational_newton_solve


@at_least_fp32
def newton_solve(
    p: Tensor, v: Tensor, alpha: Tensor, iterations: int = 20, backend: str | None = None
) -> Tensor:
    """``newton_inverse(p, alpha, iterations) @ v``, at a fraction of its cost for large matrices.

    The gradient is the implicit one, as :func:`newton_inverse` has it.

    Args:
        p: ``(..., m, m)``, symmetric and positive semi-definite; may be singular.
        v: ``(..., m, e)``, same leading dimensions.
        alpha: ``(..., 1, 1)`` or a shape that broadcasts to it; ``0 < α·λmax² < 2``.
        iterations: number of iterations, at least 0.
        backend: of :func:`newton_inverse`, for matrices that are iterated: with 'standard' all.

    Returns:
        ``(..., m, e)`` in fp32 or better.

    Raises:
        ValueError: if the shapes do not go together or ``iterations`` is negative.
    """
    if p.shape[:-1] != v.shape[:-1]:
        raise ValueError(
            f'p must be (..., m, m) and v (..., m, e) with equal leading dimensions '
            f'and m, got {tuple(p.shape)} and {tuple(v.shape)}'
        )
    backend = choose_backend(backend, p.device)
    if backend != 'standard' and is_worthwhile(p.shape[-1], iterations):
        return rational_newton_solve(p, v, alpha.expand(*p.shape[:-2], 1, 1), iterations)
    until_converged = backend == 'triton' or p.device.type == 'cpu'  # nothing waits for it there
    return newton_inverse(p, alpha, iterations, until_converged, backend) @ v
