"""The product with the materialised matrix, in O(M·N) memory."""

from torch import Tensor

from ..gaussian_kernel.reference import gaussian_kernel


def gaussian_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q ``(..., M, d)``, k ``(..., N, d)``, v ``(..., N, e)`` -> ``(..., M, e)``."""
    return gaussian_kernel(q, k) @ v
