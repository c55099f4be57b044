"""Iterative approximation of the Moore-Penrose inverse."""

from torch import Tensor

from ..backend import choose_backend
from ..precision import at_least_fp32
from .recomputed import iterated
from .reference import pseudo_inverse as autograd_pseudo_inverse
from .reference import starting_point


@at_least_fp32
def pseudo_inverse(a: Tensor, iterations: int = 6, backend: str | None = None) -> Tensor:
    """Approximate the pseudo-inverse of matrices by iterations of third order.

    Nyströmformer (arXiv 2102.03902, eq. 11). The gradient is that of every iteration.

    Args:
        a: ``(..., m, m)``.
        iterations: number of iterations, at least 1.
        backend: 'reference' and 'standard' save all iterations for the backward pass; all others
            save a and compute them again.

    Returns:
        ``(..., m, m)`` in fp32 or better.

    Raises:
        ValueError: if a is not square, iterations is less than 1 or the backend does not exist.
    """
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f'a must be (..., m, m), got {tuple(a.shape)}')
    if iterations < 1:
        raise ValueError(f'iterations must be at least 1, got {iterations}')
    if choose_backend(backend, a.device) in ('reference', 'standard'):
        return autograd_pseudo_inverse(a, iterations)
    return iterated(a, starting_point(a), iterations)
