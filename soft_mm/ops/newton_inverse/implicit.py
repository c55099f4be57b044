"""Newton's iteration as one op with an implicit gradient, which costs two matrix products."""

import torch
from torch import Tensor

from ..backend import describe, log_fallback, runs_triton
from ..precision import at_least_fp32


def iterate(
    p: Tensor, alpha: Tensor, iterations: int, until_converged: bool, backend: str
) -> Tensor:
    """p ``(..., m, m)``, alpha broadcast to ``(..., 1, 1)`` -> ``(..., m, m)``."""
    small = threshold(p) if until_converged else 0.0
    if backend == 'triton' and runs_triton('newton_inverse', p.device):
        from . import triton_kernels

        if triton_kernels.supports(p):
            return triton_kernels.newton_inverse(p, alpha, iterations, small)
        if p.shape[-1] <= triton_kernels.MAX_SIZE:  # larger matrices use bmm by design: no warning
            log_fallback('newton_inverse', backend, describe(p))
    matrices = p.reshape(-1, *p.shape[-2:])
    v, product = (alpha * p).reshape(matrices.shape), torch.empty_like(matrices)
    for step in range(iterations):
        torch.bmm(v, matrices, out=product)
        # From the first step on, I − VP is the square of a symmetric matrix, so its largest entry
        # is on the diagonal. The check takes up to half as long as a step, hence every fourth step.
        converged = (
            until_converged
            and step % 4 == 3
            and bool((product.diagonal(dim1=-2, dim2=-1) > 1 - small).all())
        )
        v = torch.baddbmm(v, product, v, beta=2, alpha=-1)
        if converged:
            break
    return v.view(p.shape)


def threshold(p: Tensor) -> float:
    """Each step squares VP − I: after all entries are below this, one more step suffices."""
    return (torch.finfo(p.dtype).eps / max(1, p.shape[-1])) ** 0.5


implicit_newton_inverse = torch.library.custom_op(
    'soft_mm::newton_inverse', iterate, mutates_args=()
)


@implicit_newton_inverse.register_fake
def _(p: Tensor, alpha: Tensor, iterations: int, until_converged: bool, backend: str) -> Tensor:
    return p.new_empty(p.shape)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(output)


@at_least_fp32
def _backward(ctx, grad: Tensor):
    (v,) = ctx.saved_tensors
    return -v.mT @ grad @ v.mT, None, None, None, None


implicit_newton_inverse.register_autograd(_backward, setup_context=_setup_context)
