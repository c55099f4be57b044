"""What soft_mm runs on here, for bug reports: ``python -m soft_mm.env``."""

import os
import platform
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version

import torch

from . import __version__
from .ops.extension import missing
from .ops.kernel import chosen_kernel

PACKAGES = ('triton', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')


def installed() -> dict[str, str]:
    """Versions and distributions of the packages, by the name that imports them."""
    distributions = packages_distributions()
    return {
        package: ', '.join(f'{version(name)} ({name})' for name in distributions.get(package, ()))
        or 'absent'
        for package in PACKAGES
    }


def kernels(triton: str) -> str:
    """Which kernels the ops take where no argument says, and which there are."""
    chosen = os.environ.get('SOFT_MM_KERNEL')
    if chosen is None:
        cpu, gpu = (chosen_kernel(None, torch.device(device)) for device in ('cpu', 'cuda'))
        if missing() is None:
            cpu += ' and the extension'
        chosen = f'{cpu} on CPU, {gpu} on CUDA'
    else:
        chosen = f'SOFT_MM_KERNEL={chosen}'
    built = 'built for CPU' if missing('cuda') else 'built for CPU and CUDA'
    return (
        f'kernels: {chosen}; extension: {missing() or built}; triton: {triton}; '
        f'CUDA devices: {torch.cuda.device_count()}'
    )


def report() -> Iterator[str]:
    """The lines: the kernels in use, versions, devices."""
    packages = installed()
    yield kernels(packages['triton'])
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
