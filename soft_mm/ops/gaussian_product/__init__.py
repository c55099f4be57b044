"""Product of a Gaussian kernel matrix, which is never whole, with the tokens' values."""

from torch import Tensor

from ..precision import at_least_fp32
from ..shapes import check_shapes
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
    check_shapes(q, k, v)
    return tiled_gaussian_product(q, k, v)
