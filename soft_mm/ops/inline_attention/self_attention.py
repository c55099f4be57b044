"""Self-attention from the covariance of the tokens, without computing queries and keys."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import choose_backend
from ..linear import linear, weight_gradient
from ..sizes import known


def is_worthwhile(x: Tensor, num_heads: int, backend: str | None) -> bool:
    """Whether the covariance of the tokens ``(B, N, C)`` takes fewer flops than q and k on a CPU.

    False in half precision, where projections are fast and sums over all tokens lose accuracy.
    """
    num_tokens, dims = x.shape[1:]
    width = dims // num_heads
    return (
        x.device.type == 'cpu'
        and choose_backend(backend, x.device) in ('torch', 'extension')
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled('cpu')
        and not known(2 * num_tokens * width <= dims * (dims + 2 * width))
    )


def covariance_self_attention(
    x: Tensor, mean: Tensor, weight: Tensor, bias: Tensor, num_heads: int
) -> tuple[Tensor, Tensor]:
    """x ``(B, N, C)``, its mean ``(B, C)``, weight ``(3·C, C)``, bias ``(3·C,)`` -> attention and v,
    ``(B, N, C)``."""
    return _attention(x, mean, weight, bias, num_heads)[:2]


@torch.library.custom_op('soft_mm::inline_self_attention', mutates_args=())
def _attention(
    x: Tensor, mean: Tensor, weight: Tensor, bias: Tensor, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention and v, ``(B, N, C)``, and for the backward pass the tokens' covariance
    ``(B, C, C)``."""
    weight_v, bias_v = weight.chunk(3)[2], bias.chunk(3)[2]
    mean = mean.unsqueeze(1)
    covariance = _linear_per_image(x.mT, x.mT) / x.shape[1] - mean.mT @ mean
    q, k, v = _head_weights(weight, bias, num_heads)
    # All heads as one linear map of the tokens, with its bias in the last row.
    maps = _concat_heads(q.mT @ _key_value_covariance(_key_token_covariance(covariance, k), v))
    offset = F.linear(mean, weight_v, bias_v) + maps[:, -1:]
    out = _linear_per_image(x, maps[:, :-1].mT, offset.squeeze(1))
    return out, linear(x, weight_v, bias_v), covariance


@torch.library.custom_op('soft_mm::inline_self_attention_backward', mutates_args=())
def _attention_backward(
    grad: Tensor,
    grad_v: Tensor,
    x: Tensor,
    mean: Tensor,
    weight: Tensor,
    bias: Tensor,
    covariance: Tensor,
    num_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean = mean.unsqueeze(1)
    q, k, v = _head_weights(weight, bias, num_heads)
    weight_k, weight_v = weight.chunk(3)[1:]
    key_token = _key_token_covariance(covariance, k)
    key_value = _key_value_covariance(key_token, v)
    sums = grad.sum(1, keepdim=True)

    # out = x·maps + offset + mean(v), where qᵀ·key_value stacks maps and offset.
    grad_maps = torch.cat((_linear_per_image(x.mT, grad.mT), sums), 1)
    grad_maps = grad_maps.unflatten(2, (num_heads, -1)).transpose(1, 2)
    grad_q = (key_value @ grad_maps.mT).sum(0)
    # key_value = d^-½·key_token·vᵀ, where key_token = k·covariance.
    grad_key_value = q @ grad_maps * q.shape[1] ** -0.5
    grad_k = (grad_key_value @ _key_token_covariance(covariance, v)).sum(0)
    grad_values = (grad_key_value.mT @ key_token).sum(0)
    grad_covariance = weight_k.mT @ (grad_key_value @ v).flatten(1, 2)
    # covariance = xᵀ·x / N − meanᵀ·mean.
    grad_covariance = grad_covariance + grad_covariance.mT
    grad_mean = (sums @ weight_v - mean @ grad_covariance).squeeze(1)

    grad_x = _linear_per_image(x, grad_covariance / x.shape[1])
    grad_x += _linear_per_image(grad, _concat_heads(q.mT @ key_value)[:, :-1])
    grad_x += linear(grad_v, weight_v.T)
    grad_v, x, sums = grad_v.flatten(0, 1), x.flatten(0, 1), sums.flatten(0, 1)
    grad_values = grad_values.flatten(0, 1) + weight_gradient(grad_v, x)
    grad_values.addmm_(sums.mT, mean.flatten(0, 1))
    grad_weight = torch.cat((grad_q[..., :-1].flatten(0, 1), grad_k.flatten(0, 1), grad_values))
    grad_bias = torch.cat(
        (grad_q[..., -1].flatten(), torch.zeros_like(bias).chunk(3)[1], grad_v.sum(0) + sums.sum(0))
    )
    return grad_x, grad_mean, grad_weight, grad_bias


def _linear_per_image(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x ``(B, N, C)``, weight ``(B, E, C)`` and bias ``(B, E)`` of each image -> ``(B, N, E)``."""
    if len(x) == 1:  # without a copy
        return linear(x, weight[0], None if bias is None else bias[0])
    out = x.new_empty(*x.shape[:-1], weight.shape[1])
    for i, image in enumerate(x):
        out[i] = linear(image, weight[i], None if bias is None else bias[i])
    return out


def _head_weights(weight: Tensor, bias: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split the projection by head: weights of q with its bias as last column, ``(h, d, C + 1)``,
    and weights of k and v, ``(h, d, C)``."""
    q, k, v = weight.unflatten(0, (3, num_heads, -1))
    return torch.cat((q, bias.chunk(3)[0].view(num_heads, -1, 1)), -1), k, v


def _key_token_covariance(covariance: Tensor, k: Tensor) -> Tensor:
    """Covariance of keys and tokens ``(B, h, d, C)``, from the tokens' covariance ``(B, C, C)`` and
    the weights of k ``(h, d, C)``."""
    return (k.flatten(0, 1) @ covariance).unflatten(1, k.shape[:2])


def _key_value_covariance(key_token: Tensor, v: Tensor) -> Tensor:
    """Covariance of keys and values ``(B, h, d, d)`` times ``d^-½``, from the covariance of keys
    and tokens and the weights of v ``(h, d, C)``."""
    return v.shape[1] ** -0.5 * key_token @ v.mT


def _concat_heads(heads: Tensor) -> Tensor:
    """``(B, h, M, d)`` -> ``(B, M, h·d)``."""
    return heads.transpose(1, 2).flatten(2)


@_attention.register_fake
def _(
    x: Tensor, mean: Tensor, weight: Tensor, bias: Tensor, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, dims = x.shape
    return x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty(batch, dims, dims)


@_attention_backward.register_fake
def _(
    grad: Tensor,
    grad_v: Tensor,
    x: Tensor,
    mean: Tensor,
    weight: Tensor,
    bias: Tensor,
    covariance: Tensor,
    num_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(t.new_empty(t.shape) for t in (x, mean, weight, bias))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.num_heads = inputs
    ctx.save_for_backward(*tensors, output[2])


def _backward(ctx, grad: Tensor, grad_v: Tensor, _):
    return *_attention_backward(grad, grad_v, *ctx.saved_tensors, ctx.num_heads), None


_attention.register_autograd(_backward, setup_context=_setup_context)
