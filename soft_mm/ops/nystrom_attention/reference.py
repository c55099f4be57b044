"""The attention with materialised matrices, in O(N·m) memory, and its weights."""

import torch
from torch import Tensor

from ..gaussian_kernel import gaussian_kernel
from ..precision import at_least_fp32
from .solvers import solve_landmarks


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
    k1 = gaussian_kernel(q, landmarks, backend)
    out = k1 @ solve_landmarks(landmarks, k1.mT @ v, sym_norm, solver, alpha_scope, backend)
    return out if dtype is None else out.to(dtype)


@at_least_fp32
def attention_rows(
    q: Tensor,
    k: Tensor,
    landmarks: Tensor,
    sym_norm: bool = False,
    solver: str = 'newton',
    alpha_scope: str = 'matrix',
    backend: str | None = None,
) -> Tensor:
    """Attention weights of some queries, by which the attention multiplies the values.

    Args:
        q: the queries ``(B, h, M, d)``.
        k: all tokens, which are queries and keys, ``(B, h, N, d)``.
        landmarks: landmark tokens ``(B, h, m, d)``.
        sym_norm, solver, alpha_scope, backend: see :func:`soft_mm.ops.nystrom_attention`.

    Returns:
        ``(B, h, M, N)`` in fp32 or better. Rows do not sum to 1, and weights may be negative.
    """
    q, k = (gaussian_kernel(x, landmarks, backend) for x in (q, k))
    # K1 · inverse(K2) · K1ᵀ with the inverse, which is symmetric, applied to the fewer tokens.
    return solve_landmarks(landmarks, q.mT, sym_norm, solver, alpha_scope, backend).mT @ k.mT
