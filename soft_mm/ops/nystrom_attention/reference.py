"""The attention with materialised matrices, in O(N·m) memory."""

from torch import Tensor

from ..gaussian_kernel import gaussian_kernel
from .solvers import solve


def nystrom_attention(
    q: Tensor,
    v: Tensor,
    landmarks: Tensor,
    sym_norm: bool,
    solver: str,
    alpha_scope: str,
    backend: str,
) -> Tensor:
    """q, v ``(B, h, N, ...)``, landmarks ``(B, h, m, d)`` -> ``(B, h, N, e)``."""
    k1, k2 = (gaussian_kernel(x, landmarks, backend) for x in (q, landmarks))
    return k1 @ solve(k2, k1.mT @ v, sym_norm, solver, alpha_scope, backend)
