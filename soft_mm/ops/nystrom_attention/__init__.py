"""Nyström attention with a Gaussian kernel."""

from math import prod

import torch
from torch import Tensor

from ..backend import choose_backend
from ..extension import missing
from ..gaussian_product.tiled import tile_size
from ..sizes import known
from .reference import nystrom_attention as untiled_nystrom_attention
from .solvers import check_solver
from .tiled import tiled_nystrom_attention

# Elements of K1 from which the compiled op is faster on a CPU than materialising it.
MIN_SIZE = 2**19


def nystrom_attention(
    q: Tensor,
    v: Tensor,
    landmarks: Tensor,
    sym_norm: bool = False,
    solver: str = 'newton',
    alpha_scope: str = 'matrix',
    backend: str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``K1 · inverse(K2) · (K1ᵀ v)`` with Gaussian ``K1`` (N, m) and ``K2`` (m, m).

    SOFT (arXiv 2110.11945, §3.2) and SOFT-Norm (arXiv 2207.03341, §3.3).

    Args:
        q: queries, which also serve as keys, ``(B, h, N, d)``, any strides.
        v: values ``(B, h, N, e)``.
        landmarks: landmark tokens ``(B, h, m, d)``.
        sym_norm: apply SOFT-Norm's symmetric normalisation to the inverse of K2.
        solver: 'newton' computes the result of the papers' 20 iterations, by a faster method for
            large m; 'iteration' always runs the iterations; 'ridge' uses the exact inverse of
            ``K2 + 0.01·I``, only for weights trained that way.
        alpha_scope: 'matrix' scales the starting point of the iteration for each matrix, so that an
            image's output does not depend on the rest of the batch; 'batch' shares one scale, as
            the released SOFT-Norm does.
        backend: 'triton', the default on a GPU, keeps K1 in registers; 'extension', the default on a
            CPU if it is built and K1 is large, keeps K1 in the cache, and on a GPU materialises it with the
            compiled op; 'torch' computes it tile by tile, or materialises it if it fits in one
            tile; 'reference' materialises it and runs the solver 'newton' as 'iteration';
            'standard' materialises it with operators that other runtimes support.
        dtype: dtype of the result; by default fp32 or better. Half-precision arguments are read as
            they are, while sums, exponents, K2 and its inverse are fp32.

    Returns:
        ``(B, h, N, e)``.

    Raises:
        ValueError: if ``solver``, ``alpha_scope`` or ``backend`` does not exist, or the shapes are
            inconsistent.
    """
    check_solver(solver, alpha_scope)
    if known(q.shape[0] == 0):
        alpha_scope = 'matrix'  # an empty batch has no largest sum
    k1_size = prod(q.shape[:-1]) * landmarks.shape[-2]
    materialises = missing() or known(k1_size < MIN_SIZE)
    chosen = choose_backend(backend, q.device, 'torch' if materialises else 'extension')
    if chosen == 'reference' and solver == 'newton':
        solver = 'iteration'
    untiled = (
        chosen in ('reference', 'standard')
        or chosen == 'extension'
        and q.device.type != 'cpu'
        or chosen == 'torch'
        and known(k1_size <= tile_size(q.device))
    )
    attend = untiled_nystrom_attention if untiled else tiled_nystrom_attention
    return attend(q, v, landmarks, sym_norm, solver, alpha_scope, backend, dtype)
