"""Attention through landmarks with a Gaussian kernel."""

from math import prod

from torch import Tensor

from ..backend import choose_backend
from ..gaussian_product.tiled import tile_size
from ..precision import at_least_fp32
from .reference import nystrom_attention as whole_nystrom_attention
from .solvers import check_solver
from .tiled import tiled_nystrom_attention


@at_least_fp32
def nystrom_attention(
    q: Tensor,
    v: Tensor,
    landmarks: Tensor,
    sym_norm: bool = False,
    solver: str = 'newton',
    alpha_scope: str = 'matrix',
    backend: str | None = None,
) -> Tensor:
    """``K1 · inverse(K2) · (K1ᵀ v)`` with Gaussian ``K1`` (N, m) and ``K2`` (m, m).

    SOFT (arXiv 2110.11945, §3.2) and SOFT-Norm (arXiv 2207.03341, §3.3).

    Args:
        q: queries, which are the keys as well, ``(B, h, N, d)``, any strides.
        v: values ``(B, h, N, e)``.
        landmarks: ``(B, h, m, d)``.
        sym_norm: SOFT-Norm's symmetric normalisation of K2.
        solver: how the inverse is applied. 'newton': what the papers' 20 iterations compute, by
            the fastest way; 'iteration': the iterations themselves; 'ridge': the exact inverse of
            ``K2 + 0.01·I``, for models that are trained with it.
        alpha_scope: scale of the iteration's start, one a 'matrix' or one a 'batch'.
        backend: 'triton', by default on a GPU, has K1 in registers only; 'torch' in tiles, or whole
            where it is no larger than one; 'extension' whole, made by the compiled op;
            'reference' whole, with the iterations themselves; 'standard' likewise, in operators
            that other runtimes have too.

    Returns:
        ``(B, h, N, e)`` in fp32 or better.

    Raises:
        ValueError: for a solver, alpha_scope or backend that does not exist, or shapes that do not
            go together.
    """
    check_solver(solver, alpha_scope)
    backend = choose_backend(backend, q.device)
    if backend == 'reference' and solver == 'newton':
        solver = 'iteration'
    whole = (
        backend in ('reference', 'extension', 'standard')
        or backend == 'torch'
        and _fits_a_tile(q, landmarks)
    )
    attend = whole_nystrom_attention if whole else tiled_nystrom_attention
    return attend(q, v, landmarks, sym_norm, solver, alpha_scope, backend)


def _fits_a_tile(q: Tensor, landmarks: Tensor) -> bool:
    return prod(q.shape[:-1]) * landmarks.shape[-2] <= tile_size(q.device)
