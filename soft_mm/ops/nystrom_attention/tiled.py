"""The attention without materialising K1."""

import torch
from torch import Tensor

from ..gaussian_kernel import gaussian_kernel
from ..gaussian_product import gaussian_product
from .solvers import solve


def tiled_nystrom_attention(
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
    values = gaussian_product(landmarks, q, v, backend)
    k2 = gaussian_kernel(landmarks, landmarks, backend)
    values = solve(k2, values, sym_norm, solver, alpha_scope, backend)
    return gaussian_product(q, landmarks, values, backend, dtype)
