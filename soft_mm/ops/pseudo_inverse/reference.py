"""The iteration as the paper writes it; autograd differentiates through every step."""

import torch
from torch import Tensor


def pseudo_inverse(a: Tensor, iterations: int = 6) -> Tensor:
    """``(..., m, m)`` -> ``(..., m, m)``."""
    return iterate(a, starting_point(a), iterations)


def starting_point(a: Tensor) -> Tensor:
    """``Aᵀ / (‖A‖₁·‖A‖∞)``, with the norms of each matrix."""
    magnitudes = a.abs()
    norms = magnitudes.sum(-2).amax(-1) * magnitudes.sum(-1).amax(-1)
    return a.mT / norms[..., None, None]


def iterate(a: Tensor, z: Tensor, iterations: int) -> Tensor:
    """Improve the approximation z of the pseudo-inverse of a, both ``(..., m, m)``."""
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(iterations):
        az = a @ z
        z = z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az))) / 4
    return z
