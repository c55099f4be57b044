"""The attention with materialised matrices, in O(N·m) memory."""

import torch
from torch import Tensor

from ..gaussian_kernel import gaussian_kernel
from ..precision import at_least_fp32
from .solvers import solve


@at_least_fp32
def nystrom_attention(
    q: Tensor,
    v: Tensor,
    landmarks: Tensor,
    sym_norm: bool,
    solver: str,
    alpha_scope: str,
    backend: str,
    dtype: torch.dtype | None,
) -> Tensor:
    """q, v ``(B, h, N, ...)``, landmarks ``(B, h, m, d)`` -> ``(B, h, N, e)``."""
    k1, k2 = (gaussian_kernel(x, landmarks, backend) for x in (q, landmarks))
    out = k1 @ solve(k2, k1.mT @ v, sym_norm, solver, alpha_scope, backend)
    return out if dtype is None else out.to(dtype)
