"""The precision that every op computes in."""

import functools

import torch
from torch import Tensor


def at_least_fp32(fn):
    """Make ``fn`` compute and return in fp32 when it is given half-precision tensors.

    All tensor arguments, positional and by keyword, are converted to one dtype, fp32 or better, and
    autocast is disabled inside: sums over tens of thousands of tokens overflow fp16, and an inverse
    loses all its digits in bf16. Gradients reach the arguments in their own dtypes.
    """

    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
        args = [a.to(dtype) if isinstance(a, Tensor) else a for a in args]
        kwargs = {k: a.to(dtype) if isinstance(a, Tensor) else a for k, a in kwargs.items()}
        device = tensors[0].device.type
        if device == 'meta' or not torch.is_autocast_enabled(device):
            return fn(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return fn(*args, **kwargs)

    return wrapper
