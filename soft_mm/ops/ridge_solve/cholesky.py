"""A Cholesky factor, which the gradient solves with again."""

import torch
from torch import Tensor


@torch.library.custom_op('soft_mm::ridge_solve', mutates_args=())
def cholesky_ridge_solve(p: Tensor, v: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """p ``(..., m, m)``, v ``(..., m, e)`` -> the solution ``(..., m, e)`` and the factor."""
    p = p.clone(memory_format=torch.contiguous_format)
    p.diagonal(dim1=-2, dim2=-1).add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(p)
    solution = torch.cholesky_solve(v, factor)
    solution.masked_fill_((failed != 0)[..., None, None], torch.nan)
    return solution.contiguous(), factor


@cholesky_ridge_solve.register_fake
def _(p: Tensor, v: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), p.new_empty(p.shape)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*output)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad: Tensor | None, _):
    if grad is None:
        return None, None, None
    solution, factor = ctx.saved_tensors
    grad_v = torch.cholesky_solve(grad, factor)
    return -grad_v @ solution.mT, grad_v, None


cholesky_ridge_solve.register_autograd(_backward, setup_context=_setup_context)
