"""The product on a CPU: the compiled ops of csrc/gaussian_product."""

import torch
from torch import Tensor

from ..extension import check_built
from .tiled import empty as empty

_OPS = torch.ops.soft_mm


def product(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """q ``(..., M, d)``, k ``(..., N, d)``, v ``(..., N, e)`` -> ``(..., M, e)``."""
    check_built('the compiled product', q.device)
    return _OPS.gaussian_sums(q, k, v).to(dtype)


def gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from the gradient ``(..., M, e)`` of the product."""
    return _OPS.gaussian_sums_backward(grad, q, k, v)
