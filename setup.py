"""Build of the compiled extension and of soft_mm/.mim. The metadata is in pyproject.toml."""

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

root = Path(__file__).parent


class BuildWithMim(build_py):
    """Also place configs, tools and model index in soft_mm/.mim, where mim and MMEngine find them.

    A wheel has copies. An editable installation has links, so that it follows the checkout.
    """

    def run(self) -> None:
        super().run()
        mim = (root if self.editable_mode else Path(self.build_lib)) / 'soft_mm/.mim'
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        for name in ('configs', 'tools', 'model-index.yml'):
            if self.editable_mode:
                (mim / name).symlink_to(Path('../..', name))
            elif (root / name).is_dir():
                ignore = shutil.ignore_patterns('__pycache__')
                shutil.copytree(root / name, mim / name, ignore=ignore)
            else:
                shutil.copy(root / name, mim)


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.glob(f'csrc/**/{pattern}'))


def extension() -> dict:
    """Arguments that make setup() build soft_mm._C, the ops of csrc/; empty if that is impossible.

    Raises:
        SystemExit: if FORCE_CUDA=1 requests the CUDA sources and they cannot be built.
    """
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        return without_extension(f'{error} (with pip, pass --no-build-isolation)')
    compiler = os.environ.get('CXX', 'c++')
    if sys.platform != 'linux' or not shutil.which(compiler):
        return without_extension(f'building them needs Linux and a C++ compiler (CXX={compiler})')

    forced = os.environ.get('FORCE_CUDA') == '1'
    # CUDA_HOME is None if torch is built without CUDA.
    nvcc = cpp_extension.CUDA_HOME and shutil.which('nvcc', path=f'{cpp_extension.CUDA_HOME}/bin')
    if forced and not nvcc:
        raise SystemExit(
            'FORCE_CUDA=1 needs nvcc in $CUDA_HOME/bin and a torch built for CUDA, '
            f'got CUDA_HOME={cpp_extension.CUDA_HOME}, torch {torch.__version__}'
        )
    cuda = forced or (torch.cuda.is_available() and nvcc)
    # pip installs CUDA's headers with torch; an nvcc without the toolkit lacks them.
    headers = Path(torch.__file__).parents[1].glob('nvidia/*/include') if cuda else ()
    return dict(
        ext_modules=[
            (cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension)(
                'soft_mm._C',
                sources('*.cpp') + (sources('*.cu') if cuda else []),
                depends=sources('*.h'),
                include_dirs=[str(path) for path in headers],
                # Not linked with OpenMP: torch ships its own copy, and two copies have two pools.
                extra_compile_args=dict(cxx=['-O3', '-fopenmp'], nvcc=['-O3']),
            )
        ],
        cmdclass=dict(build_ext=cpp_extension.BuildExtension),
    )


def without_extension(reason: str) -> dict:
    print(f'soft_mm is installed without its compiled ops: {reason}', file=sys.stderr)
    return {}


arguments = extension()
arguments['cmdclass'] = dict(arguments.get('cmdclass', {}), build_py=BuildWithMim)
setup(**arguments)
