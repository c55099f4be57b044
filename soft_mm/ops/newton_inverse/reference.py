"""Newton's iteration as the paper writes it; autograd differentiates through every step."""

from torch import Tensor


def newton_inverse(p: Tensor, alpha: Tensor, iterations: int = 20) -> Tensor:
    """p ``(..., m, m)``, alpha broadcast to ``(..., 1, 1)`` -> ``(..., m, m)``."""
    v = alpha * p
    for _ in range(iterations):
        v = 2 * v - v @ p @ v
    return v
