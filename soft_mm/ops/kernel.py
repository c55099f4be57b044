"""Which way the ops compute: one switch for all of them."""

import os
from functools import cache

KERNELS = ('torch', 'reference')


def chosen_kernel(kernel: str | None = None) -> str:
    """The argument, or the environment's ``SOFT_MM_KERNEL``, or 'torch'.

    Args:
        kernel: 'torch' for the fast ways, 'reference' for the formulas as the papers write them.

    Raises:
        ValueError: for another kernel.
    """
    kernel = kernel or _from_environment()
    if kernel not in KERNELS:
        raise ValueError(f'kernel (or SOFT_MM_KERNEL) must be one of {list(KERNELS)}, '
                         f'got {kernel!r}')
    return kernel


@cache
def _from_environment() -> str:
    return os.environ.get('SOFT_MM_KERNEL', 'torch')
