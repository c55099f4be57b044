"""Convolution of channel-last tokens on a CPU: the compiled ops of csrc/dynamic_conv.

If soft_mm._C is built, importing this module registers the fake implementations and gradients of
``soft_mm::convolve_tokens`` and ``soft_mm::correlate_tokens``. The second computes the filters'
gradient of the first; together they express each other's gradients, to any order.
"""

import torch
from torch import Tensor

from ..extension import check_built, missing, register

_OPS = torch.ops.soft_mm


def compiled_dynamic_conv(
    v: Tensor, filters: Tensor, bias: Tensor | None, height: int, width: int
) -> Tensor:
    """v ``(B, H·W, C)``, filters ``(B, C, 3, 3)``, bias ``(C,)``, on a CPU -> ``(B, H·W, C)``."""
    check_built('the compiled convolution', v.device)
    return _OPS.convolve_tokens(v, filters, bias, height, width)


def _rotated(filters: Tensor) -> Tensor:
    """Rotate the filters by 180°."""
    return filters.flip(2, 3)


def _save_convolved(ctx, inputs, output):
    v, filters, bias, *ctx.hw = inputs
    ctx.save_for_backward(v, filters)
    ctx.has_bias = bias is not None


def _convolve_backward(ctx, grad: Tensor):
    v, filters = ctx.saved_tensors
    return (
        _OPS.convolve_tokens(grad, _rotated(filters), None, *ctx.hw),
        _OPS.correlate_tokens(grad, v, *ctx.hw),
        grad.sum((0, 1)) if ctx.has_bias else None,
        None,
        None,
    )


def _save_correlated(ctx, inputs, output):
    grad, v, *ctx.hw = inputs
    ctx.save_for_backward(grad, v)


def _correlate_backward(ctx, filters: Tensor):
    grad, v = ctx.saved_tensors
    return (
        _OPS.convolve_tokens(v, filters, None, *ctx.hw),
        _OPS.convolve_tokens(grad, _rotated(filters), None, *ctx.hw),
        None,
        None,
    )


if missing() is None:
    register(
        'convolve_tokens', lambda v, *_: v.new_empty(v.shape), _convolve_backward, _save_convolved
    )
    register(
        'correlate_tokens',
        lambda grad, v, *_: v.new_empty(v.shape[0], v.shape[2], 3, 3),
        _correlate_backward,
        _save_correlated,
    )
