"""Loader of the compiled ops of csrc/: importing this module loads soft_mm._C if it is built."""

from importlib import import_module

import torch

_BUILD = (
    'build it with `pip install --no-build-isolation -e .` and a C++ compiler, and for GPUs '
    'with FORCE_CUDA=1 and nvcc'
)


def _load() -> str | None:
    """Load soft_mm._C; return the reason if that fails, else None."""
    try:
        import_module('soft_mm._C')
    except ModuleNotFoundError:
        return 'soft_mm._C is not built'
    except ImportError as error:  # for example, built for another version of torch
        return f'soft_mm._C cannot be loaded ({error})'
    return None


def missing(device: str = 'cpu') -> str | None:
    """Return why the compiled ops cannot run on this type of device, or None if they can."""
    if _FAILURE is None and device == 'cuda' and not _HAS_CUDA:
        return 'soft_mm._C is built for the CPU only'
    return _FAILURE


def check_built(what: str, device: torch.device) -> None:
    """Check that the compiled ops can run on the device.

    Args:
        what: subject of the error message.
        device: device of the tensors.

    Raises:
        RuntimeError: if the ops are not built for the device. The message says how to build them.
    """
    reason = missing(device.type)
    if reason:
        raise RuntimeError(f'{what} needs the compiled ops: {reason}; {_BUILD}')


def register(op: str, fake, backward, setup_context=None) -> None:
    """Register the fake implementation and the gradient of an op of soft_mm._C."""
    torch.library.register_fake(f'soft_mm::{op}', fake)
    torch.library.register_autograd(f'soft_mm::{op}', backward, setup_context=setup_context)


_FAILURE = _load()
_HAS_CUDA = _FAILURE is None and torch._C._dispatch_has_kernel_for_dispatch_key(
    'soft_mm::exact_gaussian_kernel', 'CUDA'
)
