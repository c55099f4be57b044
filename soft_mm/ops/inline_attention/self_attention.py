"""Attention of tokens among themselves by their covariance: no query and no key is made."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import choose_backend


def is_worthwhile(x: Tensor, num_heads: int, backend: str | None) -> bool:
    """Whether the covariance of the tokens ``(B, N, C)`` takes fewer flops than q, k and v do.

    Not in half precision: projections are fast there, and sums over all tokens lose their digits.
    """
    num_tokens, dims = x.shape[1:]
    width = dims // num_heads
    return (
        x.device.type == 'cpu'
        and choose_backend(backend, x.device) == 'torch'
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled('cpu')
        and 2 * num_tokens * width > dims * (dims + 2 * width)
    )


def covariance_self_attention(
    x: Tensor, weight: Tensor, bias: Tensor, num_heads: int
) -> tuple[Tensor, Tensor]:
    """x ``(B, N, C)``, weight ``(3·C, C)``, bias ``(3·C,)`` -> attention and v, ``(B, N, C)``."""
    return _attention(x, weight, bias, num_heads)[:2]


@torch.library.custom_op('soft_mm::inline_self_attention', mutates_args=())
def _attention(
    x: Tensor, weight: Tensor, bias: Tensor, num_heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results, and for the backward pass the mean ``(B, 1, C)`` and covariance ``(B, C, C)``."""
    weight_v, bias_v = weight.chunk(3)[2], bias.chunk(3)[2]
    mean = x.mean(1, keepdim=True)
    covariance = torch.baddbmm(mean.mT @ mean, x.mT, x, beta=-1, alpha=1 / x.shape[1])
    q, k, v = _heads(weight, bias, num_heads)
    maps = _side_by_side(q.mT @ _of_heads(_with(covariance, k), v))
    out = torch.baddbmm(F.linear(mean, weight_v, bias_v) + maps[:, -1:], x, maps[:, :-1])
    return out, F.linear(x, weight_v, bias_v), mean, covariance


@torch.library.custom_op('soft_mm::inline_self_attention_backward', mutates_args=())
def _attention_backward(
    grad: Tensor,
    grad_v: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    covariance: Tensor,
    num_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, num_tokens, _ = x.shape
    q, k, v = _heads(weight, bias, num_heads)
    weight_k, weight_v = weight.chunk(3)[1:]
    keys = _with(covariance, k)
    of_heads = _of_heads(keys, v)
    sums = grad.sum(1, keepdim=True)

    # out = x·maps + offset + mean(v), maps and offset = qᵀ·of_heads
    grad_maps = torch.cat((x.mT @ grad, sums), 1).unflatten(2, (num_heads, -1)).transpose(1, 2)
    grad_q = (of_heads @ grad_maps.mT).sum(0)
    grad_heads = q @ grad_maps * q.shape[1] ** -0.5
    # of_heads = d^-½·keys·vᵀ, keys = k·covariance
    grad_k = (grad_heads @ _with(covariance, v)).sum(0)
    grad_values = (grad_heads.mT @ keys).sum(0)
    grad_covariance = weight_k.mT @ (grad_heads @ v).flatten(1, 2)
    # covariance = xᵀ·x / N − meanᵀ·mean
    grad_covariance = (grad_covariance + grad_covariance.mT) / num_tokens
    offset = sums @ weight_v / num_tokens - mean @ grad_covariance

    grad_x = torch.baddbmm(offset, x, grad_covariance)
    grad_x.baddbmm_(grad, _side_by_side(q.mT @ of_heads)[:, :-1].mT)
    grad_x.baddbmm_(grad_v, weight_v.expand(batch, -1, -1))
    grad_v, x, sums = grad_v.flatten(0, 1), x.flatten(0, 1), sums.flatten(0, 1)
    grad_values = (grad_values.flatten(0, 1) + grad_v.mT @ x).addmm_(sums.mT, mean.flatten(0, 1))
    grad_weight = torch.cat((grad_q[..., :-1].flatten(0, 1), grad_k.flatten(0, 1), grad_values))
    grad_bias = torch.cat(
        (grad_q[..., -1].flatten(), torch.zeros_like(bias).chunk(3)[1], grad_v.sum(0) + sums.sum(0))
    )
    return grad_x, grad_weight, grad_bias


def _heads(weight: Tensor, bias: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of each head's queries, with the bias as last column, ``(h, d, C + 1)``, and of its
    keys and values ``(h, d, C)``."""
    q, k, v = weight.unflatten(0, (3, num_heads, -1))
    return torch.cat((q, bias.chunk(3)[0].view(num_heads, -1, 1)), -1), k, v


def _with(covariance: Tensor, heads: Tensor) -> Tensor:
    """The tokens' covariance ``(B, C, C)`` and weights ``(h, d, C)`` -> the covariance of what they
    make with the tokens, ``(B, h, d, C)``."""
    return (heads.flatten(0, 1) @ covariance).unflatten(1, heads.shape[:2])


def _of_heads(keys: Tensor, v: Tensor) -> Tensor:
    """The keys' covariance with the tokens -> scaled, that with the values, ``(B, h, d, d)``."""
    return v.shape[1] ** -0.5 * keys @ v.mT


def _side_by_side(heads: Tensor) -> Tensor:
    """``(B, h, M, d)`` -> ``(B, M, h·d)``."""
    return heads.transpose(1, 2).flatten(2)


@_attention.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, num_heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, _, dims = x.shape
    return (
        x.new_empty(x.shape),
        x.new_empty(x.shape),
        x.new_empty(batch, 1, dims),
        x.new_empty(batch, dims, dims),
    )


@_attention_backward.register_fake
def _(
    grad: Tensor,
    grad_v: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    covariance: Tensor,
    num_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(t.new_empty(t.shape) for t in (x, weight, bias))


def _setup_context(ctx, inputs, output):
    x, weight, bias, ctx.num_heads = inputs
    ctx.save_for_backward(x, weight, bias, *output[2:])


def _backward(ctx, grad: Tensor, grad_v: Tensor, *_):
    return *_attention_backward(grad, grad_v, *ctx.saved_tensors, ctx.num_heads), None


_attention.register_autograd(_backward, setup_context=_setup_context)
