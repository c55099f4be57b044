"""Count the multiply-adds of a model, including soft_mm's ops, which counters otherwise ignore.

Each op's ``flops.py`` counts multiply-adds from the shapes of its arguments in two functions:
``formula`` counts those of the papers' formulas, independently of the implementation, and
``executed`` those that the op runs.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from math import prod

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..ops.dynamic_conv import flops as dynamic_conv
from ..ops.extension import missing
from ..ops.gaussian_kernel import flops as gaussian_kernel
from ..ops.gaussian_product import flops as gaussian_product
from ..ops.inline_attention import flops as inline_attention
from ..ops.mlp import flops as mlp
from ..ops.newton_inverse import flops as newton_inverse
from ..ops.newton_solve import flops as newton_solve
from ..ops.pseudo_inverse import flops as pseudo_inverse
from ..ops.ridge_solve import flops as ridge_solve

OPS = {
    'gaussian_kernel': gaussian_kernel,
    'gaussian_product': gaussian_product,
    'inline_self_attention': inline_attention,
    'mlp': mlp,
    'newton_inverse': newton_inverse,
    'newton_solve': newton_solve,
    'pseudo_inverse': pseudo_inverse,
    'ridge_solve': ridge_solve,
    **({} if missing() else {'convolve_tokens': dynamic_conv}),
}


aten = torch.ops.aten
# What the counts call PyTorch's operators.
NAMES = {
    aten.mm: 'linear',
    aten.addmm: 'linear',
    aten.bmm: 'matmul',
    aten.baddbmm: 'matmul',
    aten._scaled_dot_product_flash_attention_for_cpu: 'matmul',
    aten.convolution: 'conv',
    aten.native_batch_norm: 'batch_norm',
    aten._native_batch_norm_legit_no_training: 'batch_norm',
    aten.native_group_norm: 'group_norm',
    aten.native_layer_norm: 'layer_norm',
}


def _attention(q: list[int], k: list[int], v: list[int], *_, **__) -> int:
    """Softmax attention, which PyTorch's counter does not support on a CPU."""
    return 2 * prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _norm(operations: int, x: list[int], *_, **__) -> int:
    return 2 * operations * prod(x)


def _executed(count: Callable, *shapes, **_) -> int:
    return 2 * count(*shapes)


# PyTorch's counter counts a multiply-add as two.
_ATTENTION = {aten._scaled_dot_product_flash_attention_for_cpu: _attention}
# As fvcore counts them, with which the papers' authors count.
_NORMS = {
    aten.native_batch_norm: partial(_norm, 2),
    aten._native_batch_norm_legit_no_training: partial(_norm, 2),
    aten.native_group_norm: partial(_norm, 5),
    aten.native_layer_norm: partial(_norm, 5),
}


def count_multiply_adds(model: nn.Module, *inputs) -> Counter[str]:
    """Count the multiply-adds of the papers' formulas, by operator.

    A multiply-add counts as one, as in the papers. Norms are counted, element-wise operations are
    not. Model and inputs may be on the device 'meta', where nothing is computed.
    """
    counts = Counter()

    def add(name: str, formula: Callable, *shapes, **_) -> int:
        count = formula(*shapes)
        counts.update(count if isinstance(count, Counter) else {name: count})
        return 0  # to PyTorch's counter, which knows the operator only by its own name

    ops = {
        getattr(torch.ops.soft_mm, name): partial(add, name, op.formula) for name, op in OPS.items()
    }
    for operator, count in _count({**ops, **_ATTENTION, **_NORMS}, model, inputs).items():
        counts[NAMES.get(operator, str(operator))] += count
    return +counts


def count_executed(model: nn.Module, *inputs) -> int:
    """Count the multiply-adds of the matrix products and convolutions that PyTorch executes."""
    ops = {
        getattr(torch.ops.soft_mm, name): partial(_executed, op.executed)
        for name, op in OPS.items()
    }
    return sum(_count({**ops, **_ATTENTION}, model, inputs).values())


def _count(formulas: dict, model: nn.Module, inputs: tuple) -> dict:
    """Multiply-adds of each operator, by PyTorch's counter and by ``formulas``."""
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter, torch.no_grad():
        model(*inputs)
    return {operator: flops // 2 for operator, flops in counter.flop_counts['Global'].items()}
