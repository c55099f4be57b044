"""Selection of the backend that the ops compute with."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from mmengine.logging import print_log

BACKENDS = ('torch', 'triton', 'extension', 'reference', 'standard')
# Triton 3.4 ships with torch 2.8; earlier versions are not tested.
HAS_TRITON = find_spec('triton') is not None and torch.__version__ >= (2, 8)
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
OLDEST_GPU = 8  # major compute capability from which the Triton kernels are compiled and tested


def is_exporting() -> bool:
    """Whether ``torch.export`` traces the model, which it can from PyTorch 2.7 on."""
    # torch.compiler.is_exporting() returns the same flag, but is also true in torch.compile.
    return getattr(torch.compiler, '_is_exporting_flag', False)


def choose_backend(backend: str | None, device: torch.device, on_cpu: str = 'torch') -> str:
    """Return the backend of one call: the argument, the selected backend or the device's default.

    Ops without the chosen backend fall back to 'torch'. While ``torch.export`` or
    ``torch.onnx.export`` traces a model, the default is 'standard'.

    Args:
        backend: 'torch' composes PyTorch operators; 'triton' runs fused kernels and is the default
            on a GPU if Triton is installed; 'extension' runs the compiled C++ and CUDA ops of
            ``csrc/``; 'reference' evaluates the formulas as the papers write them; 'standard' uses
            only operators that other runtimes support, materialises every matrix and does not
            branch on sizes, so that one exported graph is valid for every input size. None uses
            the selection of :func:`set_backend` or of the environment variable ``SOFT_MM_BACKEND``.
        device: device of the tensors.
        on_cpu: default backend on a CPU.

    Raises:
        ValueError: if the backend does not exist, or if it is 'triton' and Triton cannot run.
    """
    if backend is None and is_exporting():
        return 'standard'
    defaults = dict(cpu=on_cpu, cuda='triton' if HAS_TRITON else 'torch')
    backend = backend or _selected or defaults.get(device.type, 'torch')
    if backend not in BACKENDS:
        raise ValueError(
            f'backend (or SOFT_MM_BACKEND) must be one of {list(BACKENDS)}, got {backend!r}'
        )
    if backend == 'triton' and not HAS_TRITON:
        raise ValueError("backend 'triton' needs the package triton and torch 2.8 or later")
    if backend == 'triton' and device.type != 'cuda' and not INTERPRETED:
        raise ValueError(
            f"backend 'triton' needs tensors on a GPU, got {device}; with TRITON_INTERPRET=1 in "
            'the environment it also runs on a CPU, slowly'
        )
    return backend


@contextmanager
def set_backend(backend: str | None) -> Iterator[None]:
    """Select the backend of every op called within the context.

    The selection is the process's, not the thread's, because on GPUs autograd recomputes checkpointed
    blocks in a thread of its own. Programs with several threads select a backend once for all of them.

    Args:
        backend: see :func:`choose_backend`; None selects each device's default.

    Raises:
        ValueError: if the backend does not exist.
    """
    global _selected
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f'backend must be None or one of {list(BACKENDS)}, got {backend!r}')
    before, _selected = _selected, backend
    try:
        yield
    finally:
        _selected = before


def runs_triton(op: str, device: torch.device) -> bool:
    """Whether the device can run Triton kernels; logs once if the GPU is too old for ``op``."""
    if device.type != 'cuda' or not torch.cuda.is_available():
        return True  # the interpreter, or fake CUDA tensors on a machine without a GPU
    properties = torch.cuda.get_device_properties(device)
    if properties.major < OLDEST_GPU:
        log_fallback(op, 'triton', f'{properties.name} is older than sm_{OLDEST_GPU}0')
        return False
    return True


def log_fallback(op: str, backend: str, reason: str) -> None:
    """Warn, once per op and backend, that a call falls back to 'torch'."""
    if torch.compiler.is_compiling() or (op, backend) in _logged:
        return
    _logged.add((op, backend))
    print_log(
        f"{op}: backend {backend!r} does not support this call ({reason}); using 'torch'",
        logger='current',
        level=logging.WARNING,
    )


def describe(*tensors: torch.Tensor) -> str:
    """Format the shapes and dtypes of tensors for a message."""
    return ', '.join(f'{tuple(x.shape)} of {x.dtype}' for x in tensors)


def _from_environment() -> str | None:
    if old := os.environ.get('SOFT_MM_KERNEL'):
        old = 'extension' if old == 'cuda' else old
        warnings.warn(
            f'SOFT_MM_KERNEL is deprecated: set SOFT_MM_BACKEND={old} instead',
            FutureWarning,
            stacklevel=2,
        )
    return os.environ.get('SOFT_MM_BACKEND') or old or None


SELECTED_BY_ENVIRONMENT = _from_environment()
_selected = SELECTED_BY_ENVIRONMENT
_logged: set[tuple[str, str]] = set()
