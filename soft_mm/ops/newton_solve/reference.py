"""The inverse formed as in the paper, then multiplied by the values."""

from torch import Tensor

from ..newton_inverse.reference import newton_inverse


def newton_solve(p: Tensor, v: Tensor, alpha: Tensor, iterations: int = 20) -> Tensor:
    """p ``(..., m, m)``, v ``(..., m, e)``, alpha broadcast to ``(..., 1, 1)`` -> ``(..., m, e)``."""
    return newton_inverse(p, alpha, iterations) @ v
