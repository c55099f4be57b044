"""Which way the ops compute: one switch for all of them."""

import os
from importlib.util import find_spec

import torch

KERNELS = ('torch', 'triton', 'cuda', 'reference')
FROM_ENVIRONMENT = os.environ.get('SOFT_MM_KERNEL')
HAS_TRITON = find_spec('triton') is not None
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'


def chosen_kernel(kernel: str | None, device: torch.device) -> str:
    """The argument, or the environment's ``SOFT_MM_KERNEL``, or the fastest for the device.

    An op that has no such way computes as 'torch' does.

    Args:
        kernel: 'torch' for compositions of PyTorch's own operators, 'triton' for fused kernels, the
            default on a GPU, 'cuda' for the compiled extension, 'reference' for the formulas as the
            papers write them.
        device: of the tensors.

    Raises:
        ValueError: for another kernel, or for Triton's on a device that it does not run on.
    """
    fastest = 'triton' if device.type == 'cuda' and HAS_TRITON else 'torch'
    kernel = kernel or FROM_ENVIRONMENT or fastest
    if kernel not in KERNELS:
        raise ValueError(f'kernel (or SOFT_MM_KERNEL) must be one of {list(KERNELS)}, '
                         f'got {kernel!r}')
    if kernel == 'triton' and device.type != 'cuda' and not INTERPRETED:
        raise ValueError(f"kernel 'triton' takes tensors on a GPU, got {device}; with "
                         'TRITON_INTERPRET=1 in the environment it runs, slowly, on a CPU too')
    return kernel
