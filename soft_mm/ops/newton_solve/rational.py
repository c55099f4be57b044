"""Newton's iterations as one rational function: a Cholesky factor and a few triangular solves."""

import math
from functools import cache

import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from ..precision import at_least_fp32
from ..shapes import ceil_div

DEGREE = 16
POLE = 13.5
# Total elements of the matrices that a GPU solves in one batch.
BATCH_ELEMENTS = 2**24
# For smaller matrices the iteration is as fast.
MIN_SIZE = 160
# From this many iterations on, the exponential approximates the power to fp32 precision.
MIN_ITERATIONS = 20


def is_worthwhile(m: int, iterations: int) -> bool:
    """Whether the rational function is accurate and faster than iterating."""
    return m >= MIN_SIZE and iterations >= MIN_ITERATIONS


@cache
def coefficients() -> list[float]:
    """Chebyshev coefficients of ``g(r) = φ(z)/r``, ``φ(z) = (1 − e^{-z})/z``, ``r = γ/(γ + z)``.

    The relative error of g is below 5e-8 for 0 ≤ z < ∞, that is 0 < r ≤ 1.
    """

    def g(x):
        r = (x + 1) / 2
        z = POLE * (1 / r - 1)
        return [-math.expm1(-z) / z / r for z, r in zip(z, r)]

    return chebyshev.chebinterpolate(g, DEGREE).tolist()


@torch.library.custom_op('soft_mm::newton_solve', mutates_args=())
def rational_newton_solve(p: Tensor, v: Tensor, alpha: Tensor, iterations: int) -> Tensor:
    """p ``(..., m, m)``, v ``(..., m, e)``, alpha ``(..., 1, 1)`` -> ``(..., m, e)``."""
    scales = alpha.double().reshape(-1, 1, 1) * 2.0**iterations
    matrices, values = (x.reshape(-1, *x.shape[-2:]) for x in (p, v))
    # A CPU solves the matrices one by one, which is as fast and takes less memory.
    size = 1 if p.device.type == 'cpu' else max(1, BATCH_ELEMENTS // matrices[0].numel())
    parts = zip(*(x.split(size) for x in (matrices, values, scales)))
    return torch.cat([_solve(*part).to(v.dtype) for part in parts]).view(v.shape)


def _solve(p: Tensor, v: Tensor, scale: Tensor) -> Tensor:
    p, v = p.double(), v.double()  # P² squares the condition number, too much for fp32
    shifted = _square(p).mul_(scale)
    shifted.diagonal(dim1=-2, dim2=-1).add_(POLE)
    factor, _ = torch.linalg.cholesky_ex(shifted)

    def resolvent(x: Tensor) -> Tensor:
        x = torch.linalg.solve_triangular(factor, POLE * x, upper=False)
        return torch.linalg.solve_triangular(factor.mT, x, upper=True)

    # Clenshaw's recurrence for g(r)·v, with 2r − 1 as the Chebyshev argument.
    first, *others = coefficients()
    y, before = torch.zeros_like(v), torch.zeros_like(v)
    for c in reversed(others):
        y, before = c * v + 2 * (2 * resolvent(y) - y) - before, y
    y = first * v + (2 * resolvent(y) - y) - before
    return scale * (p @ resolvent(y))


def _square(p: Tensor) -> Tensor:
    """P² in the lower triangle, which is all that the Cholesky factor reads; zeros or P² above."""
    square, width = torch.zeros_like(p), ceil_div(p.shape[-1], 4)
    for i in range(0, p.shape[-1], width):
        square[:, i:, i : i + width] = p[:, i:] @ p[..., i : i + width]
    return square


@rational_newton_solve.register_fake
def _(p: Tensor, v: Tensor, alpha: Tensor, iterations: int) -> Tensor:
    return v.new_empty(v.shape)


def _setup_context(ctx, inputs, output):
    p, _, alpha, ctx.iterations = inputs
    ctx.save_for_backward(p, alpha, output)


@at_least_fp32
def _backward(ctx, grad: Tensor):
    p, alpha, out = ctx.saved_tensors
    grad_v = rational_newton_solve(p, grad, alpha, ctx.iterations)
    return -grad_v @ out.mT, grad_v, None, None


rational_newton_solve.register_autograd(_backward, setup_context=_setup_context)
