"""Multiply-adds of a model, including our ops, which counters would otherwise take for nothing.

Each op's ``flops.py`` has two counts of its multiply-adds from the shapes of its arguments:
``formula``, what the papers' arithmetic takes whichever way it is computed, and ``executed``, what
the op runs.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from math import prod

import torch
from mmengine.analysis import FlopAnalyzer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from ..ops.dynamic_conv import flops as dynamic_conv
from ..ops.extension import missing
from ..ops.gaussian_kernel import flops as gaussian_kernel
from ..ops.gaussian_product import flops as gaussian_product
from ..ops.inline_attention import flops as inline_attention
from ..ops.mlp import flops as mlp
from ..ops.newton_inverse import flops as newton_inverse
from ..ops.newton_solve import flops as newton_solve
from ..ops.ridge_solve import flops as ridge_solve

OPS = {
    'gaussian_kernel': gaussian_kernel,
    'gaussian_product': gaussian_product,
    'inline_self_attention': inline_attention,
    'mlp': mlp,
    'newton_inverse': newton_inverse,
    'newton_solve': newton_solve,
    'ridge_solve': ridge_solve,
    **({} if missing() else {'convolve_tokens': dynamic_conv}),
}


def _attention(q: list[int], k: list[int], v: list[int], *_) -> int:
    """Softmax attention, whose op MMEngine and PyTorch's counter do not know on a CPU."""
    return prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _of_jit_values(count: Callable, inputs: list, outputs: list) -> int | Counter[str]:
    """A handle of MMEngine's counter: inputs and outputs are those of a node of a traced graph."""
    return count(
        *(
            value.type().sizes() if value.type().kind() == 'TensorType' else value.toIValue()
            for value in inputs
        )
    )


def _flops(count: Callable, *shapes, out_shape: object = None, **_) -> int:
    """A formula of PyTorch's counter, which counts a multiply-add as two."""
    return 2 * count(*shapes)


for _name, _op in OPS.items():
    register_flop_formula(getattr(torch.ops.soft_mm, _name))(partial(_flops, _op.executed))
register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)(
    partial(_flops, _attention)
)


def count_multiply_adds(model: nn.Module, *inputs) -> Counter[str]:
    """Multiply-adds that the formulas ask for, by operator, from MMEngine's trace of the model.

    A multiply-add counts as one, as in the papers. Elementwise operations do not count; norms do.
    """
    handles = {f'soft_mm::{name}': partial(_of_jit_values, op.formula) for name, op in OPS.items()}
    handles['aten::scaled_dot_product_attention'] = partial(_of_jit_values, _attention)
    analyzer = FlopAnalyzer(model, inputs).set_op_handle(**handles)
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analyzer.tracer_warnings('none')
    return analyzer.by_operator()


def count_executed(model: nn.Module, *inputs) -> int:
    """Multiply-adds of the matrix products and convolutions that PyTorch really runs."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops() // 2
