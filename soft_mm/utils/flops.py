"""Multiply-adds of a model, our ops among them, which counters would otherwise take for nothing."""

from collections import Counter
from collections.abc import Callable
from math import prod

import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.analysis.complexity_analysis import _DEFAULT_SUPPORTED_FLOP_OPS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula


def _gaussian_kernel(q: list[int], k: list[int]) -> int:
    return prod(q) * k[-2]


def _newton_inverse(p: list[int], alpha: list[int], iterations: int) -> int:
    return 2 * iterations * prod(p) * p[-1]


def _attention(q: list[int], k: list[int], v: list[int], *_) -> int:
    return prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _of_jit_values(count: Callable) -> Callable:
    """As MMEngine's counter calls it: with the inputs and outputs of a node of a traced graph."""

    def handle(inputs, outputs) -> int:
        return count(*(value.type().sizes() if value.type().kind() == 'TensorType' else
                       value.toIValue() for value in inputs))

    return handle


_DEFAULT_SUPPORTED_FLOP_OPS.update({
    'soft_mm::gaussian_kernel': _of_jit_values(_gaussian_kernel),
    'soft_mm::newton_inverse': _of_jit_values(_newton_inverse),
    'aten::scaled_dot_product_attention': _of_jit_values(_attention),
})


@register_flop_formula(torch.ops.soft_mm.gaussian_kernel)
def _(q, k, **_) -> int:
    return 2 * _gaussian_kernel(q, k)


@register_flop_formula(torch.ops.soft_mm.newton_inverse)
def _(p, alpha, iterations, **_) -> int:
    return 2 * _newton_inverse(p, alpha, iterations)


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
