"""Inverse of symmetric positive matrices by Newton's iteration."""

from torch import Tensor

from ..backend import choose_backend
from ..precision import at_least_fp32
from .implicit import implicit_newton_inverse
from .reference import newton_inverse as standard_newton_inverse


@at_least_fp32
def newton_inverse(
    p: Tensor,
    alpha: Tensor | None = None,
    iterations: int = 20,
    until_converged: bool = False,
    backend: str | None = None,
) -> Tensor:
    """``V ← 2V − V P V`` from ``V = α P``: ``P⁻¹`` once converged, a damped inverse before.

    SOFT (arXiv 2110.11945, §3.2). The gradient is the implicit one,
    ``dP = −Vᵀ G Vᵀ``, with ``α`` held constant.

    Args:
        p: ``(..., m, m)``, symmetric and positive semi-definite. A singular matrix gives a finite
            result: its null directions stay at zero.
        alpha: ``(..., 1, 1)`` or a shape that broadcasts to it; converges where
            ``0 < α·λmax² < 2``. By default ``1.8 / ‖P‖₁²``, one for each matrix.
        iterations: number of iterations, at least 0.
        until_converged: stop where further iterations would change no digit of any matrix. Where
            PyTorch iterates, each iteration then waits for the device.
        backend: 'triton' iterates matrices of at most 64 rows in one launch, in fp32; 'torch' all
            others, and by default on a CPU; 'standard' all of them, with the gradient through
            every step.

    Returns:
        ``(..., m, m)`` in fp32 or better.

    Raises:
        ValueError: if ``p`` is not a stack of square matrices, ``iterations`` is negative or the
            backend does not exist.
    """
    if p.ndim < 2 or p.shape[-1] != p.shape[-2]:
        raise ValueError(f'p must be (..., m, m), got {tuple(p.shape)}')
    if iterations < 0:
        raise ValueError(f'iterations must be at least 0, got {iterations}')
    if alpha is None:
        alpha = 1.8 / p.detach().abs().sum(-1).amax(-1)[..., None, None].square()
    backend = choose_backend(backend, p.device)
    if backend == 'standard':
        return standard_newton_inverse(p, alpha, iterations)
    return implicit_newton_inverse(p, alpha, iterations, until_converged, backend)
