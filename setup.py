import os
import re
import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
version = re.search(r"__version__ = '(.+)'", (root / 'soft_mm/__init__.py').read_text())[1]


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.glob(f'csrc/**/{pattern}'))


def extension() -> dict:
    """What makes setup build soft_mm._C, the ops of csrc/: nothing where they cannot be built.

    Raises:
        SystemExit: if FORCE_CUDA=1 asks for the CUDA sources and they cannot be built.
    """
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        return without_extension(f'{error} (pip needs --no-build-isolation to see it)')
    compiler = os.environ.get('CXX', 'c++')
    if sys.platform != 'linux' or not shutil.which(compiler):
        return without_extension(f'it takes Linux and a C++ compiler (CXX={compiler})')

    forced = os.environ.get('FORCE_CUDA') == '1'
    # A torch without CUDA has no CUDA_HOME.
    nvcc = cpp_extension.CUDA_HOME and shutil.which('nvcc', path=f'{cpp_extension.CUDA_HOME}/bin')
    if forced and not nvcc:
        raise SystemExit(
            'FORCE_CUDA=1 needs nvcc in $CUDA_HOME/bin and a torch built for CUDA, '
            f'got CUDA_HOME={cpp_extension.CUDA_HOME}, torch {torch.__version__}'
        )
    cuda = forced or (torch.cuda.is_available() and nvcc)
    # CUDA's headers as pip installs them with torch, which a bare nvcc lacks.
    headers = Path(torch.__file__).parents[1].glob('nvidia/*/include') if cuda else ()
    return dict(
        ext_modules=[
            (cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension)(
                'soft_mm._C',
                sources('*.cpp') + (sources('*.cu') if cuda else []),
                depends=sources('*.h'),
                include_dirs=[str(path) for path in headers],
                # Not linked with OpenMP: torch brings a copy of its own, and two have two pools.
                extra_compile_args=dict(cxx=['-O3', '-fopenmp'], nvcc=['-O3']),
            )
        ],
        cmdclass=dict(build_ext=cpp_extension.BuildExtension),
    )


def without_extension(reason: str) -> dict:
    print(f'soft_mm is installed without its compiled ops: {reason}', file=sys.stderr)
    return {}


setup(
    name='soft_mm',
    version=version,
    description='Linear-attention vision backbones (SOFT, SOFT-Norm) for OpenMMLab',
    long_description=(root / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['soft_mm', 'soft_mm.*']),
    python_requires='>=3.10',
    # MMEngine comes from one of two distributions with the same import name: the extras name them.
    install_requires=['torch>=2.4'],
    extras_require={
        'onedl': [
            'onedl-mmengine>=0.10.12',
            'onedl-mmcv>=2.3.6',
            'onedl-mmdetection>=3.5.1',
            'onedl-mmsegmentation>=1.4.2',
            'onedl-mmpretrain>=1.3.6',
        ],
        'openmmlab': [
            'mmengine>=0.10.7',
            'mmcv>=2.1.0',
            'mmdet>=3.3.0',
            'mmsegmentation>=1.2.2',
            'mmpretrain>=1.2.0',
        ],
        'dev': ['pre-commit', 'pytest', 'pytest-xdist', 'ruff', 'scikit-learn'],
    },
    **extension(),
)
