"""Gaussian kernel between two sets of tokens."""

from torch import Tensor

from ..kernel import chosen_kernel
from ..precision import at_least_fp32
from .expanded import expanded_gaussian_kernel, expansion


@at_least_fp32
def gaussian_kernel(q: Tensor, k: Tensor, kernel: str | None = None) -> Tensor:
    """``exp(-½‖q_i − k_j‖²)`` for every pair of tokens (SOFT, arXiv 2110.11945, §3.1).

    Args:
        q: ``(..., N, d)``, any strides.
        k: ``(..., m, d)``, same leading dimensions and device.
        kernel: 'cuda' for the compiled extension, which takes exact differences on GPU and CPU and
            head widths of at most 128; 'standard' for PyTorch's operators, without an op around
            them; PyTorch's operators otherwise.

    Returns:
        ``(..., N, m)``, values in [0, 1], in fp32 or better. Differentiable in both arguments.

    Raises:
        ValueError: if the leading dimensions or the head widths ``d`` differ, or the kernel does
            not exist.
        RuntimeError: for 'cuda' where the extension is not built.
    """
    if q.shape[:-2] != k.shape[:-2] or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            'q must be (..., N, d) and k (..., m, d) with equal leading dimensions '
            f'and d, got {tuple(q.shape)} and {tuple(k.shape)}'
        )
    kernel = chosen_kernel(kernel, q.device)
    if kernel == 'standard':
        return expansion(q, k)
    if kernel == 'cuda':
        from .extension import exact_gaussian_kernel

        return exact_gaussian_kernel(q, k)
    return expanded_gaussian_kernel(q, k)
