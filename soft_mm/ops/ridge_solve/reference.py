"""Solution by LU decomposition, differentiated by autograd."""

import torch
from torch import Tensor


def ridge_solve(p: Tensor, v: Tensor, ridge: float = 0.01) -> Tensor:
    """p ``(..., m, m)``, v ``(..., m, e)`` -> ``(..., m, e)``."""
    return torch.linalg.solve(p + ridge * torch.eye(p.shape[-1], dtype=p.dtype, device=p.device), v)
