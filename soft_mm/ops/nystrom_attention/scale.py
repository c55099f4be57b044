"""What the iteration inverts, and the scale of its starting point (arXiv 2110.11945, 2207.03341)."""

import torch
from torch import Tensor

from ..backend import choose_backend, runs_triton

# SOFT adds RIDGE to the diagonal of K2, and starts from MARGIN times the largest scale.
RIDGE, MARGIN = 0.01, 0.9
# SOFT-Norm: a scale is too large if a column of |I − αP²| sums to more than MAX_SUM. At αλ² = 2, which K2 = I
# reaches, the sums pass but the iteration never converges, so the diagonal of αP² is limited too.
MAX_SUM, MAX_DIAGONAL, MAX_HALVINGS = 1.01, 1.9, 10


def newton_start(
    k2: Tensor, row_sums: Tensor, sym_norm: bool, alpha_scope: str, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """The matrix ``(B, h, m, m)`` that the iteration inverts, and its scale ``(B, h, 1, 1)``.

    ``row_sums`` ``(B, h, m, 1)`` are those of k2; with the scope 'batch' there is one scale for all.
    """
    if sym_norm:
        return k2, newton_scale(k2.detach(), row_sums, alpha_scope, backend)
    eye = torch.eye(k2.shape[-1], dtype=k2.dtype, device=k2.device)
    # K2 is symmetric with positive entries, so its 1-norm is the largest sum.
    norm = row_sums.amax((0, 1, 2) if alpha_scope == 'batch' else -2, keepdim=True)
    return k2 + RIDGE * eye, MARGIN * 2 / norm.square()


def newton_scale(p: Tensor, row_sums: Tensor, alpha_scope: str, backend: str | None) -> Tensor:
    """Halve ``2/‖P‖₁²``, at most ten times, while it is too large.

    Args:
        p: ``(B, h, m, m)``, symmetric with non-negative entries.
        row_sums: ``(B, h, m, 1)``; the largest is ‖P‖₁.
        alpha_scope: 'matrix' for a scale per matrix, 'batch' for one that suits all.
        backend: see :func:`soft_mm.ops.nystrom_attention`.

    Returns:
        ``(B, h, 1, 1)``, or ``(1, 1, 1, 1)`` for 'batch'.
    """
    shared = alpha_scope == 'batch'
    if choose_backend(backend, p.device) == 'triton' and runs_triton('newton_scale', p.device):
        from . import triton_kernels

        if triton_kernels.supports(p):
            return triton_kernels.newton_scale(p, row_sums, shared)
    columns = p @ row_sums
    diagonal = torch.linalg.vector_norm(p, dim=-1, keepdim=True).square()  # of P², like the columns
    # The sums are |1 − α·diagonal| + α·(columns − diagonal), and at most MAX_SUM if α·bound ≤ 1.
    bound = torch.maximum(
        (columns - 2 * diagonal) / (MAX_SUM - 1),
        torch.maximum(columns / (MAX_SUM + 1), diagonal / MAX_DIAGONAL),
    )
    norm, bound = (x.amax((0, 1, 2) if shared else -2, keepdim=True) for x in (row_sums, bound))
    alpha = 2 / norm.square()
    halvings = (alpha * bound).log2().ceil().clamp(0, MAX_HALVINGS)
    return alpha * 0.5**halvings
