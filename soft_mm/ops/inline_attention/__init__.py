"""Injective linear attention."""

import torch.nn.functional as F
from torch import Tensor

from ..precision import at_least_fp32
from ..shapes import check_shapes, split_heads
from .covariance import covariance_inline_attention
from .self_attention import covariance_self_attention, is_worthwhile


@at_least_fp32
def inline_attention(q: Tensor, k: Tensor, v: Tensor, num_tokens: Tensor | None = None) -> Tensor:
    """``Σ_j (s·q_i·(k_j − k̄) + 1)/n · v_j`` for every query i, ``s = d^-½``, in O(M + N).

    InLine (arXiv 2412.06590), with the identity as its kernel function.

    Args:
        q: ``(..., M, d)``, any strides.
        k: ``(..., N, d)``, same leading dimensions and device.
        v: ``(..., N, e)``.
        num_tokens: number n of tokens that are not padding, ``(..., 1, 1)`` or a shape that
            broadcasts to it; k and v must be zero in the padding. By default N.

    Returns:
        ``(..., M, e)`` in fp32 or better.

    Raises:
        ValueError: if the leading dimensions, the head dimensions ``d`` or the token counts ``N``
            differ.
    """
    check_shapes(q, k, v)
    return covariance_inline_attention(q, k, v, k.shape[-2] if num_tokens is None else num_tokens)


def inline_self_attention(
    x: Tensor, weight: Tensor, bias: Tensor, num_heads: int, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Project tokens to ``q, k, v = x·Wᵀ + b`` and apply multi-head :func:`inline_attention`.

    On a CPU in fp32 or fp64, if that takes fewer flops, q and k are not computed: the covariance of
    k and v follows from the covariance of the tokens.

    Args:
        x: tokens ``(B, N, C)``.
        weight: of the projection to q, k and v, ``(3·C, C)``.
        bias: of the projection, ``(3·C,)``.
        num_heads: number of heads; divides C.
        backend: 'reference' and 'standard' always compute q and k; all others run 'torch'.

    Returns:
        The attention's output and v, each ``(B, N, C)`` with the heads concatenated, and the mean
        of the tokens x, ``(B, C)``.

    Raises:
        ValueError: if the backend does not exist.
    """
    if is_worthwhile(x, num_heads, backend):
        return covariance_self_attention(x, weight, bias, num_heads)
    return *projected_attention(F.linear(x, weight, bias), num_heads), x.mean(1)


def projected_attention(
    qkv: Tensor, num_heads: int, num_tokens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Multi-head :func:`inline_attention` of projected tokens.

    Args:
        qkv: queries, keys and values ``(B, N, 3·C)``, each with the heads concatenated.
        num_heads: number of heads; divides C.
        num_tokens: ``(B, 1, 1, 1)``; see :func:`inline_attention`.

    Returns:
        The attention's output and v, each ``(B, N, C)`` with the heads concatenated.
    """
    q, k, v = qkv.chunk(3, -1)
    heads = (split_heads(t, num_heads) for t in (q, k, v))
    out = inline_attention(*heads, num_tokens)
    return out.to(v.dtype).transpose(1, 2).flatten(2), v
