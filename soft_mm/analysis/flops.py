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
from mmengine.analysis import FlopAnalyzer
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
    """Multiply-adds of softmax attention, which the counters do not support on a CPU."""
    return prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _batched_product(_, a: list[int], b: list[int], *__) -> Counter[str]:
    """Multiply-adds of ``torch.baddbmm``, which MMEngine's counter does not support."""
    return Counter(matmul=prod(a) * b[-1])


def _jit_handle(count: Callable, inputs: list, outputs: list) -> int | Counter[str]:
    """Adapt ``count`` to MMEngine's counter, which passes the inputs of a traced graph's node."""
    return count(
        *(
            value.type().sizes() if value.type().kind() == 'TensorType' else value.toIValue()
            for value in inputs
        )
    )


def _flop_formula(count: Callable, *shapes, **_) -> int:
    """Adapt ``count`` to PyTorch's counter, which counts a multiply-add as two."""
    return 2 * count(*shapes)


_EXECUTED = {
    **{
        getattr(torch.ops.soft_mm, name): partial(_flop_formula, op.executed)
        for name, op in OPS.items()
    },
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: partial(_flop_formula, _attention),
}


def count_multiply_adds(model: nn.Module, *inputs) -> Counter[str]:
    """Count the multiply-adds of the papers' formulas, by operator, with MMEngine's tracer.

    A multiply-add counts as one, as in the papers. Norms are counted, element-wise operations are
    not.
    """
    handles = {f'soft_mm::{name}': partial(_jit_handle, op.formula) for name, op in OPS.items()}
    handles['aten::scaled_dot_product_attention'] = partial(_jit_handle, _attention)
    handles['aten::baddbmm'] = partial(_jit_handle, _batched_product)
    analyzer = FlopAnalyzer(model, inputs).set_op_handle(**handles)
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analyzer.tracer_warnings('none')
    return analyzer.by_operator()


def count_executed(model: nn.Module, *inputs) -> int:
    """Count the multiply-adds of the matrix products and convolutions that PyTorch executes."""
    with FlopCounterMode(display=False, custom_mapping=_EXECUTED) as counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops() // 2
