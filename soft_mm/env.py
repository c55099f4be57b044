"""Print backends, versions and devices for bug reports: ``python -m soft_mm.env``."""

import platform
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions

import torch

from . import __version__
from .ops import backend
from .ops.extension import missing

PACKAGES = ('triton', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')


def installed() -> dict[str, str]:
    """Version and distribution of each package, keyed by import name."""
    found = {package: [] for package in PACKAGES}
    for distribution in distributions():
        for package in found.keys() & _provided(distribution):
            found[package].append(f'{distribution.version} ({distribution.name})')
    return {package: ', '.join(names) or 'absent' for package, names in found.items()}


def _provided(distribution: Distribution) -> set[str]:
    """Import names of a distribution. Python 3.10's ``packages_distributions`` misses some."""
    names = (distribution.read_text('top_level.txt') or '').split()
    return {*names, *(path.parts[0] for path in distribution.files or ())}


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
