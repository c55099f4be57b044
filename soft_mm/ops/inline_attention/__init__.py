"""Injective linear attention."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ..backend import choose_backend, describe, log_fallback, runs_triton
from ..dynamic_conv import dynamic_conv
from ..linear import linear
from ..precision import at_least_fp32
from ..shapes import check_shapes, split_heads
from ..sizes import known
from ..windows import Windows
from .covariance import covariance_inline_attention, product_linear_attention
from .joint_heads import joint_heads_attention
from .joint_heads import supports as supports_joint_heads
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


@at_least_fp32
def linear_attention(q: Tensor, k: Tensor, v: Tensor, num_tokens: Tensor | None = None) -> Tensor:
    """``Σ_j q_i·k_j v_j / (Σ_j q_i·k_j)`` for every query i, in O(M + N).

    The linear attention that InLine (arXiv 2412.06590) compares itself with, which normalises by
    division. The mean of ``s·q_i·k_j`` over j, ``s = d^-½``, is increased by 1e-6, so that a query of
    zeros gives zeros. Arguments, result and errors are those of :func:`inline_attention`.
    """
    check_shapes(q, k, v)
    return product_linear_attention(q, k, v, k.shape[-2] if num_tokens is None else num_tokens)


def inline_self_attention(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    filters: Tensor | None,
    filter_bias: Tensor | None,
    num_heads: int,
    windows: Windows,
    mean: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Project tokens to q, k and v, apply :func:`inline_attention` and add a convolution of v.

    InLine (arXiv 2412.06590): multi-head attention within each window, plus the convolution of the
    window's v, zero-padded, with its own 3×3 filters.

    Args:
        x: tokens ``(B, T + N, C)``: T extra tokens, such as a class token, then the ``N = H·W``
            tokens of the feature map. Extra tokens take part in the attention but not in the
            convolution; T must be 0 unless one window covers the map.
        weight: of the projection to q, k and v, ``(3·C, C)``.
        bias: of the projection, ``(3·C,)``.
        filters: ``(B·number of windows, C, 3, 3)``; None adds no convolution.
        filter_bias: of the convolution, ``(C,)``; needs T = 0.
        num_heads: number of heads; divides C.
        windows: windows of the feature map.
        mean: mean of the tokens x, ``(B, C)``, if it is known.
        backend: 'triton', the default on a GPU, reads q, k and v twice and writes the result once,
            for head dimensions up to 64; all others compose :func:`inline_attention` and
            :func:`soft_mm.ops.dynamic_conv`. On a CPU in fp32 or fp64 and without windows, q and k
            are not computed if that takes fewer flops: the covariance of k and v follows from the
            covariance of the tokens. 'reference' and 'standard' always compute q and k.

    Returns:
        ``(B, T + N, C)``.

    Raises:
        ValueError: if the backend does not exist, or filter_bias is given and T is not 0.
    """
    if windows.is_whole and is_worthwhile(x, num_heads, backend):
        _check_filter_bias(x, filter_bias, windows)
        mean = x.mean(1) if mean is None else mean
        out, v = covariance_self_attention(x, mean, weight, bias, num_heads)
        return _add_convolution(out, v, filters, filter_bias, windows.hw, backend)
    qkv = linear(x, weight, bias, backend)
    return inline_projected_attention(qkv, filters, filter_bias, num_heads, windows, backend)


def inline_projected_attention(
    qkv: Tensor,
    filters: Tensor | None,
    filter_bias: Tensor | None,
    num_heads: int,
    windows: Windows,
    backend: str | None = None,
    attention: Callable | None = None,
) -> Tensor:
    """:func:`inline_self_attention` of tokens that are already projected to q, k and v.

    Args:
        qkv: ``(B, T + N, 3·C)``.
        filters, filter_bias, num_heads, windows, backend: see :func:`inline_self_attention`.
        attention: a function with the arguments of :func:`inline_attention` that is computed
            instead of it, on q, k and v of the windows, in every backend.

    Returns:
        ``(B, T + N, C)``.

    Raises:
        ValueError: if the backend does not exist, or filter_bias is given and T is not 0.
    """
    _check_filter_bias(qkv, filter_bias, windows)
    chosen = choose_backend(backend, qkv.device)
    fuses = chosen == 'triton' and attention is None and filters is not None
    if fuses and runs_triton('inline_attention', qkv.device):
        from . import triton_kernels

        if triton_kernels.supports(qkv, num_heads):
            return triton_kernels.fused_attention(qkv, filters, filter_bias, num_heads, windows)
        log_fallback('inline_attention', 'triton', describe(qkv))
    # Windows are split after the projection, whose bias would make k and v of padding nonzero.
    num_tokens = None if windows.is_whole else windows.num_tokens(qkv)[..., None]
    qkv = windows.split(qkv)
    if attention is None and chosen in ('triton', 'torch') and supports_joint_heads(qkv):
        out = joint_heads_attention(qkv, num_heads, num_tokens)
    else:
        out = _projected_attention(qkv, num_heads, num_tokens, attention or inline_attention)
    v = qkv.chunk(3, -1)[2]
    return windows.join(_add_convolution(out, v, filters, filter_bias, windows.size, backend))


def _check_filter_bias(tokens: Tensor, filter_bias: Tensor | None, windows: Windows) -> None:
    height, width = windows.hw
    if filter_bias is not None and known(tokens.shape[1] != height * width):
        raise ValueError(
            f'filter_bias needs tokens of a feature map alone, {height}·{width}, '
            f'got {tokens.shape[1]}'
        )


def _projected_attention(
    qkv: Tensor, num_heads: int, num_tokens: Tensor | None, attention: Callable
) -> Tensor:
    """Attention of each head: q, k and v ``(B, N, 3·C)``, num_tokens ``(B, 1, 1)`` -> ``(B, N, C)``."""
    heads = (split_heads(t, num_heads) for t in qkv.chunk(3, -1))
    out = attention(*heads, None if num_tokens is None else num_tokens[:, None])
    return out.to(qkv.dtype).transpose(1, 2).flatten(2)


def _add_convolution(
    out: Tensor,
    v: Tensor,
    filters: Tensor | None,
    bias: Tensor | None,
    hw: tuple[int, int],
    backend: str | None,
) -> Tensor:
    """Add the dynamic convolution of v to the attention, both ``(B, T + N, C)``."""
    if filters is None:
        return out
    num_extra = v.shape[1] - hw[0] * hw[1]
    convolved = dynamic_conv(v[:, num_extra:], filters, hw, bias, backend)
    return out + (F.pad(convolved, (0, 0, num_extra, 0)) if num_extra else convolved)
