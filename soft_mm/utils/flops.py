"""Multiply-adds of a model, our ops among them, which counters would otherwise take for nothing."""

from collections import Counter
from collections.abc import Callable
from math import prod

import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.analysis.complexity_analysis import _DEFAULT_SUPPORTED_FLOP_OPS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from ..ops.extension import missing
from ..ops.newton_solve.rational import DEGREE


def _gaussian_kernel(q: list[int], k: list[int]) -> int:
    return prod(q) * k[-2]


def _gaussian_product(q: list[int], k: list[int], v: list[int], *_) -> Counter[str]:
    # Two products, with K1 and its transpose, make anew what the papers compute once.
    return Counter(gaussian_kernel=_gaussian_kernel(q, k) // 2, matmul=prod(q[:-1]) * prod(v[-2:]))


def _newton_inverse(p: list[int], alpha: list[int], iterations: int, *_) -> int:
    return 2 * iterations * prod(p) * p[-1]


def _newton_solve(p: list[int], v: list[int], alpha: list[int], iterations: int) -> Counter[str]:
    return Counter(newton_inverse=_newton_inverse(p, alpha, iterations), matmul=prod(p) * v[-1])


def _ridge_solve(p: list[int], v: list[int], ridge: float) -> int:
    return prod(p) * p[-1] // 6 + prod(p) * v[-1]


def _mlp(
    x: list[int], weight1: list[int], bias1: list[int], weight2: list[int], *_
) -> Counter[str]:
    return Counter(linear=prod(x[:-1]) * (prod(weight1) + prod(weight2)))


def _inline_self_attention(
    x: list[int], weight: list[int], bias: list[int], num_heads: int
) -> Counter[str]:
    of_heads = x[0] * x[-1] ** 2 // num_heads  # one product of a d×d matrix for each head
    return Counter(linear=3 * prod(x) * x[-1], matmul=(2 * x[1] + 1) * of_heads)


def _convolve_tokens(v: list[int], *_) -> Counter[str]:
    return Counter(conv=9 * prod(v))


def _attention(q: list[int], k: list[int], v: list[int], *_) -> int:
    return prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _of_jit_values(count: Callable) -> Callable:
    """As MMEngine's counter calls it: with the inputs and outputs of a node of a traced graph."""

    def handle(inputs, outputs) -> int | Counter[str]:
        return count(
            *(
                value.type().sizes() if value.type().kind() == 'TensorType' else value.toIValue()
                for value in inputs
            )
        )

    return handle


# What the papers' arithmetic takes, whichever way it is computed.
_DEFAULT_SUPPORTED_FLOP_OPS.update(
    {
        'soft_mm::gaussian_kernel': _of_jit_values(_gaussian_kernel),
        'soft_mm::gaussian_product': _of_jit_values(_gaussian_product),
        'soft_mm::newton_inverse': _of_jit_values(_newton_inverse),
        'soft_mm::newton_solve': _of_jit_values(_newton_solve),
        'soft_mm::mlp': _of_jit_values(_mlp),
        'soft_mm::ridge_solve': _of_jit_values(_ridge_solve),
        'soft_mm::inline_self_attention': _of_jit_values(_inline_self_attention),
        'soft_mm::convolve_tokens': _of_jit_values(_convolve_tokens),
        'aten::scaled_dot_product_attention': _of_jit_values(_attention),
    }
)


# What is executed; a multiply-add counts as two here.
@register_flop_formula(torch.ops.soft_mm.gaussian_kernel)
def _(q, k, **_) -> int:
    return 2 * _gaussian_kernel(q, k)


@register_flop_formula(torch.ops.soft_mm.gaussian_product)
def _(q, k, v, *_, **__) -> int:
    return 2 * prod(q[:-1]) * k[-2] * (q[-1] + 2 + v[-1])


@register_flop_formula(torch.ops.soft_mm.newton_inverse)
def _(p, alpha, iterations, *_, **__) -> int:
    return 2 * _newton_inverse(p, alpha, iterations)  # at most: it may converge before


@register_flop_formula(torch.ops.soft_mm.newton_solve)
def _(p, v, alpha, iterations, **_) -> int:
    """Most of a square, a Cholesky factor, and solutions with it."""
    return 2 * (prod(p) * p[-1] * 19 // 24 + prod(p) * v[-1] * (DEGREE + 2))


@register_flop_formula(torch.ops.soft_mm.ridge_solve)
def _(p, v, ridge, **_) -> int:
    return 2 * _ridge_solve(p, v, ridge)


@register_flop_formula(torch.ops.soft_mm.mlp)
def _(x, weight1, bias1, weight2, *_, **__) -> int:
    return 2 * _mlp(x, weight1, bias1, weight2).total()


@register_flop_formula(torch.ops.soft_mm.inline_self_attention)
def _(x, weight, bias, num_heads, *_, **__) -> int:
    """Three products over all tokens; the rest is small matrices."""
    dims = x[-1]
    return 2 * x[0] * dims**2 * (3 * x[1] + dims + 2 * dims // num_heads)


if missing() is None:

    @register_flop_formula(torch.ops.soft_mm.convolve_tokens)
    def _(v, *_, **__) -> int:
        return 2 * _convolve_tokens(v).total()


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
def _(q, k, v, *_, **__) -> int:
    return 2 * _attention(q, k, v)


def count_multiply_adds(model: nn.Module, *inputs) -> Counter[str]:
    """What the formulas ask for, by operator, as MMEngine's counter finds it in the traced graph.

    A multiply-add counts as one, as in the papers. Elementwise operations do not count, norms do.
    """
    analyzer = FlopAnalyzer(model, inputs)
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analyzer.tracer_warnings('none')
    return analyzer.by_operator()


def count_executed(model: nn.Module, *inputs) -> int:
    """Multiply-adds of the matrix products and convolutions that PyTorch really runs."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops() // 2
