"""Inverse of symmetric positive semi-definite matrices by Newton's iteration."""

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
    """Iterate ``V ← 2V − V P V`` from ``V = α P``: converges to ``P⁻¹``, damped until then.

    SOFT (arXiv 2110.11945, §3.2). The gradient is implicit, ``dP = −Vᵀ G Vᵀ``, with ``α`` held
    constant.

    Args:
        p: ``(..., m, m)``, symmetric and positive semi-definite. For a singular matrix the result
            is finite, and zero in the null space.
        alpha: ``(..., 1, 1)`` or a shape that broadcasts to it; converges where
            ``0 < α·λmax² < 2``. By default ``1.8 / ‖P‖₁²`` for each matrix.
        iterations: number of iterations, at least 0.
        until_converged: stop when further iterations would not change the result. Outside of
            Triton, checking for this synchronises with the device every fourth iteration.
        backend: 'triton' runs all iterations in one launch and supports fp32 matrices of at most 64
            rows; 'standard' iterates in PyTorch, always ``iterations`` times, and its gradient
            passes through every step; all others iterate in PyTorch.

    Returns:
        ``(..., m, m)`` in fp32 or better.

    Raises:
        ValueError: if ``p`` is not a batch of square matrices, ``iterations`` is negative or the
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
