"""The attention without materialising K1."""

import torch
from torch import Tensor

from ..gaussian_product import gaussian_product
from .solvers import solve_landmarks


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
    values = solve_landmarks(landmarks, values, sym_norm, solver, alpha_scope, backend)
    return gaussian_product(q, landmarks, values, backend, dtype)
