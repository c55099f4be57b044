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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from ..ops.dynamic_conv import flops as dynamic_conv
from ..ops.extension import missing
from ..ops.gaussian_kernel import flops as gaussian_kernel
from ..ops.gaussian_product import flops as gaussian_product
from ..ops.inline_attention import flops as inline_attention
from ..ops.mlp import flops as mlp
from ..ops.newton_inverse import flops as newton_inverse
from ..ops.newton_solve import flops as newton_solve
from ..ops.nystrom_attention import flops as landmark_solve
from ..ops.pseudo_inverse import flops as pseudo_inverse
from ..ops.ridge_solve import flops as ridge_solve

OPS = {
    'gaussian_kernel': gaussian_kernel,
    'gaussian_product': gaussian_product,
    'landmark_solve': landmark_solve,
    'newton_inverse': newton_inverse,
    'newton_solve': newton_solve,
    'pseudo_inverse': pseudo_inverse,
    'ridge_solve': ridge_solve,
    **({} if missing() else {'convolve_tokens': dynamic_conv}),
}
OPS_OF_PLAIN_LAYERS = {'inline_self_attention': inline_attention, 'mlp': mlp}


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


def _attention(q: list[int], k: list[int], v: list[int], *_) -> int:
    """Softmax attention, which PyTorch's counter does not support on a CPU."""
    return prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _norm(operations: int, x: list[int], *_) -> int:
    return operations * prod(x)


_ATTENTION = {aten._scaled_dot_product_flash_attention_for_cpu: _attention}
# As fvcore counts them, with which the papers' authors count.
_NORMS = {
    aten.native_batch_norm: partial(_norm, 2),
    aten._native_batch_norm_legit_no_training: partial(_norm, 2),
    aten.native_group_norm: partial(_norm, 5),
    aten.native_layer_norm: partial(_norm, 5),
}
_EXECUTED = {
    getattr(torch.ops.soft_mm, name): op.executed
    for name, op in (OPS | OPS_OF_PLAIN_LAYERS).items()
} | _ATTENTION


class _ExecutedCounter(TorchDispatchMode):
    """Count with the formulas of PyTorch's FlopCounterMode, which itself hooks every module: hooked
    layers are called, and ops that replace their calls would not run."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        op = func.overloadpacket
        if op in _EXECUTED:
            self.total += _EXECUTED[op](*(getattr(x, 'shape', x) for x in args))
        elif op in flop_registry:
            self.total += flop_registry[op](*args, **kwargs, out_val=out) // 2
        return out


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

    def twice(count: Callable, *shapes, **_) -> int:
        return 2 * count(*shapes)  # as PyTorch's counter counts a multiply-add

    formulas = {
        getattr(torch.ops.soft_mm, name): partial(add, name, op.formula) for name, op in OPS.items()
    }
    for operator, count in (_ATTENTION | _NORMS).items():
        formulas[operator] = partial(twice, count)
    # It hooks every module, so that all layers are called and none is replaced by an op.
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter, torch.no_grad():
        model(*inputs)
    for operator, flops in counter.flop_counts['Global'].items():
        counts[NAMES.get(operator, str(operator))] += flops // 2
    return +counts


def count_executed(model: nn.Module, *inputs) -> int:
    """Count the multiply-adds of the matrix products and convolutions that PyTorch executes."""
    with _ExecutedCounter() as counter, torch.no_grad():
        model(*inputs)
    return counter.total
