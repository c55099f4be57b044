"""The op ``soft_mm::gaussian_product``: one schema and one gradient for all backends."""

import functools

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
def gaussian_product(
    q: Tensor, k: Tensor, v: Tensor, backend: str, dtype: torch.dtype | None = None
) -> Tensor:
    """q ``(..., M, d)``, k ``(..., N, d)``, v ``(..., N, e)`` -> ``(..., M, e)``."""
    implementation = _implementation(backend, q, k, v)
    return implementation.product(q, k, v, dtype or _at_least_fp32(q, k, v))


@torch.library.custom_op('soft_mm::gaussian_product_backward', mutates_args=())
def _gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _implementation(backend, q, k, v).gradients(grad, q, k, v)
    return tuple(grad.to(x.dtype) for grad, x in zip(grads, (q, k, v)))


def _at_least_fp32(*tensors: Tensor) -> torch.dtype:
    return functools.reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)


@gaussian_product.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, backend: str, dtype: torch.dtype | None = None) -> Tensor:
    empty = _implementation(backend, q, k, v).empty
    return empty(q, v.shape[-1], dtype or _at_least_fp32(q, k, v))


@_gradients.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    empty = _implementation(backend, q, k, v).empty
    return tuple(empty(x, x.shape[-1], x.dtype) for x in (q, k, v))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.backend, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad: Tensor):
    return *_gradients(grad, *ctx.saved_tensors, ctx.backend), None, None


gaussian_product.register_autograd(_backward, setup_context=_setup_context)
