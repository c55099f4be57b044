"""Computation of the ops in at least fp32."""

import functools

import torch
from torch import Tensor


def at_least_fp32(fn):
    """Make ``fn`` compute and return fp32 when it is called with half-precision tensors.

    All tensor arguments, positional and keyword, are promoted to one dtype of at least fp32, and
    autocast is disabled inside ``fn``: sums over tens of thousands of tokens overflow fp16, and
    bf16 is too coarse for an inverse. Gradients are returned in the dtypes of the arguments.
    """

    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
        args = [_promote(a, dtype) for a in args]
        kwargs = {name: _promote(a, dtype) for name, a in kwargs.items()}
        device = tensors[0].device.type
        if device == 'meta' or not torch.is_autocast_enabled(device):
            return fn(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return fn(*args, **kwargs)

    return wrapper


def _promote(value: object, dtype: torch.dtype) -> object:
    # Tensors that need no conversion are not converted: compilers trace that as well.
    return value.to(dtype) if isinstance(value, Tensor) and value.dtype != dtype else value
