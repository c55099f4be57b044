"""Many Newton iterations as one rational function: a Cholesky factor and a few products."""

import math
from functools import cache

import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from ..precision import at_least_fp32
from ..shapes import ceil_div

DEGREE = 16
POLE = 13.5
# Elements of the matrices that a GPU solves together.
GROUP = 2**24
# Smaller matrices are iterated as fast.
SMALL = 160
# The exponential differs from the power of so many iterations by less than fp32 can show.
MANY = 20


def is_worthwhile(m: int, iterations: int) -> bool:
    """Whether matrices of this size, after so many iterations, are better computed so."""
    return m >= SMALL and iterations >= MANY


@cache
def coefficients() -> list[float]:
    """Chebyshev coefficients of ``g(r) = φ(z)/r``, ``φ(z) = (1 − e^{-z})/z``, ``r = γ/(γ + z)``.

    On 0 ≤ z < ∞, which is 0 < r ≤ 1, they give g to 5e-8 relative.
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
    # One by one on a CPU, which is as fast and takes less memory; in groups on a GPU.
    size = 1 if p.device.type == 'cpu' else max(1, GROUP // matrices[0].numel())
    parts = zip(*(x.split(size) for x in (matrices, values, scales)))
    return torch.cat([_solve(*part).to(v.dtype) for part in parts]).view(v.shape)


def _solve(p: Tensor, v: Tensor, scale: Tensor) -> Tensor:
    p, v = p.double(), v.double()  # P² needs more digits than fp32 has
    shifted = _square(p).mul_(scale)
    shifted.diagonal(dim1=-2, dim2=-1).add_(POLE)
    factor, _ = torch.linalg.cholesky_ex(shifted)

    def resolvent(x: Tensor) -> Tensor:
        x = torch.linalg.solve_triangular(factor, POLE * x, upper=False)
        return torch.linalg.solve_triangular(factor.mT, x, upper=True)

    # Clenshaw's recurrence for g of the resolvent.
    first, *others = coefficients()
    y, before = torch.zeros_like(v), torch.zeros_like(v)
    for c in reversed(others):
        y, before = c * v + 2 * (2 * resolvent(y) - y) - before, y
    y = first * v + (2 * resolvent(y) - y) - before
    return scale * (p @ resolvent(y))


def _square(p: Tensor) -> Tensor:
    """The lower triangle of P², and some of the upper: all that a Cholesky factor needs."""
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
