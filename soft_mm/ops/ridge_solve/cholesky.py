"""Solution by a Cholesky factor, which the backward pass recomputes."""

import torch
from torch import Tensor

from ..precision import at_least_fp32


@torch.library.custom_op('soft_mm::ridge_solve', mutates_args=())
def cholesky_ridge_solve(p: Tensor, v: Tensor, ridge: float) -> Tensor:
    """p ``(..., m, m)``, v ``(..., m, e)`` -> ``(..., m, e)``."""
    p = p.clone(memory_format=torch.contiguous_format)
    p.diagonal(dim1=-2, dim2=-1).add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(p)
    solution = torch.cholesky_solve(v, factor)
    return solution.masked_fill_((failed != 0)[..., None, None], torch.nan).contiguous()


@cholesky_ridge_solve.register_fake
def _(p: Tensor, v: Tensor, ridge: float) -> Tensor:
    return v.new_empty(v.shape)


def _setup_context(ctx, inputs, output):
    p, _, ctx.ridge = inputs
    ctx.save_for_backward(p, output)


@at_least_fp32
def _backward(ctx, grad: Tensor):
    p, solution = ctx.saved_tensors
    grad_v = cholesky_ridge_solve(p, grad, ctx.ridge)
    return -grad_v @ solution.mT, grad_v, None


cholesky_ridge_solve.register_autograd(_backward, setup_context=_setup_context)
