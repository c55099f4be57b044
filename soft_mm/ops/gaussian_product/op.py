"""The op ``soft_mm::gaussian_product``: one schema and one gradient for all backends."""

import torch
from torch import Tensor

from ..backend import describe, log_fallback, runs_triton
from . import extension, tiled


def _implementation(backend: str, *tensors: Tensor):
    """Return the module that computes the product and its gradients."""
    if backend == 'triton' and runs_triton('gaussian_product', tensors[0].device):
        from . import triton_kernels

        if triton_kernels.supports(*tensors):
            return triton_kernels
        log_fallback('gaussian_product', backend, describe(*tensors))
    if backend == 'extension':
        device = tensors[0].device
        if device.type == 'cpu':
            return extension
        log_fallback('gaussian_product', backend, f'the compiled op runs on a CPU, not on {device}')
    return tiled


@torch.library.custom_op('soft_mm::gaussian_product', mutates_args=())
def gaussian_product(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    """q ``(..., M, d)``, k ``(..., N, d)``, v ``(..., N, e)`` -> ``(..., M, e)``."""
    return _implementation(backend, q, k, v).product(q, k, v)


@torch.library.custom_op('soft_mm::gaussian_product_backward', mutates_args=())
def _gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _implementation(backend, q, k, v).gradients(grad, q, k, v)


def _empty(dtype: torch.dtype, *shape: int, like: Tensor) -> Tensor:
    return like.new_empty(shape, dtype=torch.promote_types(dtype, torch.float32))


@gaussian_product.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    return _empty(dtype, *q.shape[:-1], v.shape[-1], like=q)


@_gradients.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(_empty(grad.dtype, *x.shape, like=x) for x in (q, k, v))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad: Tensor):
    return *_gradients(grad, *ctx.saved_tensors, ctx.backend), None


gaussian_product.register_autograd(_backward, setup_context=_setup_context)
