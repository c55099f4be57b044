"""Gaussian kernel between two sets of tokens."""

from torch import Tensor

from ..backend import choose_backend
from ..precision import at_least_fp32
from .expanded import expansion
from .op import gaussian_kernel as _gaussian_kernel


def gaussian_kernel(q: Tensor, k: Tensor, backend: str | None = None) -> Tensor:
    """``exp(-½‖q_i − k_j‖²)`` for every pair of tokens (SOFT, arXiv 2110.11945, §3.1).

    Args:
        q: ``(..., N, d)``, any strides.
        k: ``(..., m, d)``, same leading dimensions and device.
        backend: 'extension' runs the compiled op on CPU or GPU, which is exactly 1 for equal tokens
            and supports head dimensions up to 128; 'triton' computes the same in one launch;
            'standard' runs plain PyTorch operators; all others run the same operators as one
            custom op.

    Returns:
        ``(..., N, m)``, values in [0, 1], in fp32 or better. Differentiable in both arguments.

    Raises:
        ValueError: if the leading dimensions or the head dimensions ``d`` differ, or the backend
            does not exist.
        RuntimeError: if the backend is 'extension' and the extension is not built.
    """
    if q.shape[:-2] != k.shape[:-2] or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            'q must be (..., N, d) and k (..., m, d) with equal leading dimensions '
            f'and d, got {tuple(q.shape)} and {tuple(k.shape)}'
        )
    backend = choose_backend(backend, q.device)
    if backend == 'standard':
        return expansion(q, k)
    if backend == 'extension':
        from .extension import exact_gaussian_kernel

        return at_least_fp32(exact_gaussian_kernel)(q, k)
    return _gaussian_kernel(q, k, backend)
