"""Injective linear attention."""

from torch import Tensor

from ..precision import at_least_fp32
from ..shapes import check_shapes
from .covariance import covariance_inline_attention


@at_least_fp32
def inline_attention(q: Tensor, k: Tensor, v: Tensor, num_tokens: Tensor | None = None) -> Tensor:
    """``Σ_j (s·q_i·(k_j − k̄) + 1)/n · v_j`` for every query, ``s = d^-½``, linear in their number.

    InLine (arXiv 2412.06590), with the identity as its kernel function.

    Args:
        q: ``(..., M, d)``, any strides.
        k: ``(..., N, d)``, same leading dimensions and device.
        v: ``(..., N, e)``.
        num_tokens: ``(..., 1, 1)`` or what broadcasts to it: n where some of the N tokens are
            padding, whose k and v must be zero. By default N.

    Returns:
        ``(..., M, e)`` in fp32 or better.

    Raises:
        ValueError: if the leading dimensions, the head widths ``d`` or the token counts differ.
    """
    check_shapes(q, k, v)
    return covariance_inline_attention(q, k, v, k.shape[-2] if num_tokens is None else num_tokens)
