"""The exact Gaussian kernel: the compiled ops of csrc/gaussian_kernel.

If soft_mm._C is built, importing this module registers fake implementations and gradients of
``soft_mm::squared_distance`` and ``soft_mm::exact_gaussian_kernel``, and of
``soft_mm::weighted_differences``, which computes the gradients of the other two.
"""

import torch
from torch import Tensor

from ..extension import check_built, missing, register

_OPS = torch.ops.soft_mm


def exact_gaussian_kernel(q: Tensor, k: Tensor) -> Tensor:
    """``exp(-½‖q_i − k_j‖²)`` (SOFT, arXiv 2110.11945, §3.1), exactly 1 where tokens coincide.

    Args:
        q: ``(..., N, d)``, fp64, fp32, fp16 or bf16, any strides, d at most 128.
        k: ``(..., m, d)``, same leading dimensions, dtype and device.

    Returns:
        ``(..., N, m)`` in the dtype of q, computed in fp32 or better. Differentiable once, in both
        arguments.

    Raises:
        RuntimeError: if the ops are not built for the device, or the shapes, dtypes or devices of
            the arguments are not supported.
    """
    check_built('the exact Gaussian kernel', q.device)
    return _OPS.exact_gaussian_kernel(q, k)


def _distances(q: Tensor, k: Tensor) -> Tensor:
    return q.new_empty(*q.shape[:-1], k.shape[-2])


def _differences(weight: Tensor, factor: Tensor | None, q: Tensor, k: Tensor) -> Tensor:
    return q.new_empty(q.shape)


def _save_tokens(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _save_tokens_and_kernel(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output)


def _squared_distance_backward(ctx, grad: Tensor):
    q, k = ctx.saved_tensors
    return (
        -2 * _OPS.weighted_differences(grad, None, q, k),
        -2 * _OPS.weighted_differences(grad.mT, None, k, q),
    )


def _exact_gaussian_kernel_backward(ctx, grad: Tensor):
    q, k, kernel = ctx.saved_tensors
    return (
        _OPS.weighted_differences(grad, kernel, q, k),
        _OPS.weighted_differences(grad.mT, kernel.mT, k, q),
    )


def _weighted_differences_backward(ctx, grad: Tensor):
    raise RuntimeError(
        'soft_mm::weighted_differences has no gradient: squared_distance and '
        'exact_gaussian_kernel can be differentiated once only'
    )


if missing() is None:
    register('squared_distance', _distances, _squared_distance_backward, _save_tokens)
    register(
        'exact_gaussian_kernel',
        _distances,
        _exact_gaussian_kernel_backward,
        _save_tokens_and_kernel,
    )
    register('weighted_differences', _differences, _weighted_differences_backward)
