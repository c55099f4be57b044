"""The MLP of one group of tokens at a time; the backward pass recomputes the hidden values."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..linear import linear, linear_gelu, weight_gradient
from ..sizes import known

TILE = 2**19  # hidden values per group of tokens, which fit in a core's cache
WORTHWHILE = 2**22  # hidden values of all tokens from which on tiling is faster


def is_worthwhile(x: Tensor, weight1: Tensor) -> bool:
    """Whether tiling is faster for these tokens on their device."""
    return x.device.type == 'cpu' and not known(
        x.numel() // x.shape[-1] * len(weight1) < WORTHWHILE
    )


def _tiles(num_tokens: int, hidden: int) -> Iterator[slice]:
    size = max(64, TILE // hidden)
    for start in range(0, num_tokens, size):
        yield slice(start, min(start + size, num_tokens))


@torch.library.custom_op('soft_mm::mlp', mutates_args=())
def tiled_mlp(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, approximate: str
) -> Tensor:
    """x ``(..., C)``, weights ``(H, C)`` and ``(E, H)`` -> ``(..., E)``."""
    out = x.new_empty(*x.shape[:-1], len(weight2))
    tokens, flat = x.reshape(-1, x.shape[-1]), out.view(-1, len(weight2))
    for rows in _tiles(len(tokens), len(weight1)):
        hidden = linear_gelu(tokens[rows], weight1, bias1, approximate)
        flat[rows] = linear(hidden, weight2, bias2)
    return out


@torch.library.custom_op('soft_mm::mlp_backward', mutates_args=())
def _tiled_backward(
    grad: Tensor, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, approximate: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad, tokens = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    grad_x = torch.empty_like(tokens, memory_format=torch.contiguous_format)
    grad_1, grad_b1, grad_2 = (torch.zeros_like(w) for w in (weight1, bias1, weight2))
    for rows in _tiles(len(tokens), len(weight1)):
        before = linear(tokens[rows], weight1, bias1)
        grad_2 += weight_gradient(grad[rows], F.gelu(before, approximate=approximate))
        grad_before = torch.ops.aten.gelu_backward(
            linear(grad[rows], weight2.T), before, approximate=approximate
        )
        grad_b1 += grad_before.sum(0)
        grad_1 += weight_gradient(grad_before, tokens[rows])
        grad_x[rows] = linear(grad_before, weight1.T)
    return grad_x.view(x.shape), grad_1, grad_b1, grad_2, grad.sum(0)


@tiled_mlp.register_fake
def _(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, approximate: str
) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight2))


@_tiled_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, approximate: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    bias2 = grad.new_empty(grad.shape[-1])
    return tuple(t.new_empty(t.shape) for t in (x, weight1, bias1, weight2, bias2))


def _setup_context(ctx, inputs, output):
    x, weight1, bias1, weight2, _, ctx.approximate = inputs
    ctx.save_for_backward(x, weight1, bias1, weight2)


def _backward(ctx, grad: Tensor):
    return *_tiled_backward(grad, *ctx.saved_tensors, ctx.approximate), None


tiled_mlp.register_autograd(_backward, setup_context=_setup_context)
