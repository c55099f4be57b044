"""Print backends, versions and devices for bug reports: ``python -m soft_mm.env``."""

import platform
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version

import torch

from . import __version__
from .ops import backend
from .ops.extension import missing

PACKAGES = ('triton', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')


def installed() -> dict[str, str]:
    """Version and distribution of each package, keyed by import name."""
    distributions = packages_distributions()
    return {
        package: ', '.join(f'{version(name)} ({name})' for name in distributions.get(package, ()))
        or 'absent'
        for package in PACKAGES
    }


def backends(triton: str) -> str:
    """Describe the default backends of the ops and what is available."""
    if backend.SELECTED_BY_ENVIRONMENT:
        used = f'{backend.SELECTED_BY_ENVIRONMENT}, from the environment'
    else:
        cpu, gpu = (backend.choose_backend(None, torch.device(d)) for d in ('cpu', 'cuda'))
        if missing() is None:
            cpu += ' and the extension'
        used = f'{cpu} on CPU, {gpu} on CUDA'
    built = 'built for CPU' if missing('cuda') else 'built for CPU and CUDA'
    return (
        f'backends: {used}; extension: {missing() or built}; triton: {triton}; '
        f'CUDA devices: {torch.cuda.device_count()}'
    )


def report() -> Iterator[str]:
    """Yield the lines of the report: backends first, then versions and devices."""
    packages = installed()
    yield backends(packages['triton'])
    yield f'soft_mm: {__version__}'
    yield f'python: {platform.python_version()}'
    yield f'torch: {torch.__version__}, CUDA {torch.version.cuda}'
    for package, found in packages.items():
        yield f'{package}: {found}'
    yield f'cpu: {platform.machine()}, {torch.get_num_threads()} threads'
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        yield f'cuda:{i}: {device.name}, compute capability {device.major}.{device.minor}'


if __name__ == '__main__':
    print(*report(), sep='\n')
