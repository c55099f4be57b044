"""The Gaussian kernel as in the paper, from explicit differences, in O(N·m·d) memory."""

from torch import Tensor


def gaussian_kernel(q: Tensor, k: Tensor) -> Tensor:
    """``exp(-½‖q_i − k_j‖²)``: q ``(..., N, d)``, k ``(..., m, d)`` -> ``(..., N, m)``."""
    difference = q.unsqueeze(-2) - k.unsqueeze(-3)
    return difference.square().sum(-1).mul(-0.5).exp()
