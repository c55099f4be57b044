"""What must be code: the compiled extension. All else about the package is in pyproject.toml."""

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup

root = Path(__file__).parent


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


setup(**extension())
