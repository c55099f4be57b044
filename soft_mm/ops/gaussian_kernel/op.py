"""The op ``soft_mm::gaussian_kernel``: its backends, and its gradient in closed form."""

import torch
from torch import Tensor

from ..backend import describe, log_fallback, runs_triton
from ..precision import at_least_fp32
from .expanded import centred, expansion


@torch.library.custom_op('soft_mm::gaussian_kernel', mutates_args=())
def gaussian_kernel(q: Tensor, k: Tensor, backend: str) -> Tensor:
    """q ``(..., N, d)``, k ``(..., m, d)`` -> ``(..., N, m)``."""
    if backend == 'triton' and runs_triton('gaussian_kernel', q.device):
        from . import triton_kernels

        if triton_kernels.supports(q, k):
            return triton_kernels.gaussian_kernel(q, k)
        log_fallback('gaussian_kernel', backend, describe(q, k))
    return expansion(q, k)


@gaussian_kernel.register_fake
def _(q: Tensor, k: Tensor, backend: str) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), torch.float32)
    return q.new_empty(*q.shape[:-1], k.shape[-2], dtype=dtype)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2], output)


@at_least_fp32
def _backward(ctx, grad: Tensor):
    q, k, kernel = ctx.saved_tensors
    q, k = centred(q.to(kernel.dtype), k.to(kernel.dtype))
    grad = grad * kernel
    grad_q = grad @ k - grad.sum(-1).unsqueeze(-1) * q
    grad_k = grad.mT @ q - grad.sum(-2).unsqueeze(-1) * k
    return grad_q, grad_k, None


gaussian_kernel.register_autograd(_backward, setup_context=_setup_context)
