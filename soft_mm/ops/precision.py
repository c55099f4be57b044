"""The precision every op computes in."""

import functools

import torch
from torch import Tensor


def at_least_fp32(fn):
    """Make ``fn`` compute and return in fp32 when it is given half-precision tensors.

    Its floating-point tensor arguments are brought to one dtype, fp32 or better, and autocast is
    off inside: sums over tens of thousands of tokens overflow fp16, and an inverse loses all its
    digits in bf16. Gradients reach the arguments in their own dtype.
    """

    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        tensors = [a for a in args if isinstance(a, Tensor)]
        dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
        args = [a.to(dtype) if isinstance(a, Tensor) else a for a in args]
        device = tensors[0].device.type
        if device == 'meta' or not torch.is_autocast_enabled(device):
            return fn(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return fn(*args, **kwargs)

    return wrapper
