"""Iterative approximation of the Moore-Penrose inverse."""

import torch
from torch import Tensor

ITERATIONS = 6


def pseudo_inverse(a: Tensor) -> Tensor:
    """Approximate the pseudo-inverse of a ``(..., m, m)`` by six iterations of third order.

    Nyströmformer (arXiv 2102.03902, eq. 11). Autograd differentiates through every iteration.
    """
    magnitudes = a.abs()
    norms = magnitudes.sum(-2).amax(-1) * magnitudes.sum(-1).amax(-1)  # ‖a‖₁·‖a‖∞
    z = a.mT / norms[..., None, None]
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(ITERATIONS):
        az = a @ z
        z = z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az))) / 4
    return z
