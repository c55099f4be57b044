"""Product of a Gaussian kernel matrix, which is never whole, with the tokens' values."""

from torch import Tensor

from ..precision import at_least_fp32
from .tiled import tiled_gaussian_product


@at_least_fp32
def gaussian_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``Σ_j exp(-½‖q_i − k_j‖²) v_j`` (SOFT, arXiv 2110.11945, §3.1), in O(N + M) memory.

    Args:
        q: ``(..., M, d)``, any strides.
        k: ``(..., N, d)``, same leading dimensions and device.
        v: ``(..., N, e)``.

    Returns:
        ``(..., M, e)`` in fp32 or better. Differentiable in all three.

    Raises:
        ValueError: if the leading dimensions, the head widths ``d`` or the token counts differ.
    """
    if (q.shape[:-2] != k.shape[:-2] or q.shape[-1] != k.shape[-1]
            or k.shape[:-1] != v.shape[:-1]):
        raise ValueError(
            'q must be (..., M, d), k (..., N, d) and v (..., N, e) with equal leading dimensions, '
            f'd and N, got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}')
    return tiled_gaussian_product(q, k, v)
