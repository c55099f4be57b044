"""Which way the ops compute: one switch for all of them."""

import os
from importlib.util import find_spec

import torch

KERNELS = ('torch', 'triton', 'cuda', 'reference', 'standard')
FROM_ENVIRONMENT = os.environ.get('SOFT_MM_KERNEL')
# Triton 3.2 comes with torch 2.6; earlier ones are not tested.
HAS_TRITON = find_spec('triton') is not None and torch.__version__ >= (2, 6)
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
# PyTorch before 2.7 does not tell.
is_exporting = getattr(torch.compiler, 'is_exporting', lambda: False)


def chosen_kernel(kernel: str | None, device: torch.device, on_cpu: str = 'torch') -> str:
    """The argument, or the environment's ``SOFT_MM_KERNEL``, or the fastest for the device.

    An op that has no such way computes as 'torch' does. A model that ``torch.export`` or
    ``torch.onnx.export`` traces gets 'standard', whatever the environment says.

    Args:
        kernel: 'torch' for compositions of PyTorch's own operators, 'triton' for fused kernels, the
            default on a GPU, 'cuda' for the compiled extension, 'reference' for the formulas as the
            papers write them, 'standard' for operators that other runtimes have too, whole matrices
            and no choice by size, so that one graph holds for every size.
        device: of the tensors.
        on_cpu: the fastest on a CPU.

    Raises:
        ValueError: for another kernel, or for Triton's on a device that it does not run on.
    """
    if kernel is None and is_exporting():
        return 'standard'
    on_gpu = 'triton' if HAS_TRITON else 'torch'
    kernel = kernel or FROM_ENVIRONMENT or (on_gpu if device.type == 'cuda' else on_cpu)
    if kernel not in KERNELS:
        raise ValueError(
            f'kernel (or SOFT_MM_KERNEL) must be one of {list(KERNELS)}, got {kernel!r}'
        )
    if kernel == 'triton' and device.type != 'cuda' and not INTERPRETED:
        raise ValueError(
            f"kernel 'triton' takes tensors on a GPU, got {device}; with "
            'TRITON_INTERPRET=1 in the environment it runs, slowly, on a CPU too'
        )
    return kernel
