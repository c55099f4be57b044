"""setup.py builds the extension, for CUDA too, and the package works without it."""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
CUDA_HOME = Path(os.environ.get('CUDA_HOME', '/usr/local/cuda'))
CUDA_BUILD = dict(FORCE_CUDA='1', CUDA_HOME=str(CUDA_HOME), NVCC_APPEND_FLAGS='-Xptxas -v')
# Those whose compilers spill first; each takes a minute.
ARCHITECTURES = '8.0', '12.0'
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache', 'soft_mm/cuda_build')


def python(*args: str | Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *args],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    )


def architectures() -> list[str]:
    """Those that this nvcc knows."""
    nvcc = [CUDA_HOME / 'bin/nvcc', '--list-gpu-code']
    known = subprocess.run(nvcc, capture_output=True, text=True, check=True).stdout.split()
    return [number for number in ARCHITECTURES if f'sm_{number.replace(".", "")}' in known]


def fingerprint() -> str:
    """Hash everything that the CUDA build depends on: sources, flags and versions of the compilers."""
    versions = sys.version, torch.__version__
    digest = hashlib.sha256(repr((CUDA_BUILD, ARCHITECTURES, versions)).encode())
    for compiler in CUDA_HOME / 'bin/nvcc', os.environ.get('CXX', 'c++'):
        digest.update(subprocess.run([compiler, '--version'], capture_output=True).stdout)
    for path in (ROOT / 'setup.py', *sorted((ROOT / 'csrc').rglob('*.*'))):
        digest.update(str(path.relative_to(ROOT)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@pytest.fixture(scope='module')
def cuda_build() -> tuple[Path, str]:
    """The library built for CUDA, apart from the installed one, and the compilers' messages.

    The build takes minutes. One that succeeded is kept in the user's cache folder, where the next
    run finds it unless the sources, the flags or the compilers have changed; a failed one is not.
    """
    if not (torch.version.cuda and (CUDA_HOME / 'bin/nvcc').exists()):
        pytest.skip(f'it takes nvcc in {CUDA_HOME}/bin and a torch built for CUDA')
    folder = CACHE / fingerprint()
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='.build-', dir=CACHE) as temporary:
            built = Path(temporary, 'built')
            done = python(
                'setup.py',
                'build_ext',
                '--build-lib',
                built,
                '--build-temp',
                Path(temporary, 'objects'),
                **CUDA_BUILD,
                TORCH_CUDA_ARCH_LIST=';'.join(architectures()),
            )
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
            (built / 'messages.txt').write_text(done.stdout + done.stderr)
            with contextlib.suppress(OSError):  # the tests of another checkout have just made it
                built.rename(folder)
        newest_first = sorted(CACHE.glob('[!.]*'), key=lambda path: path.stat().st_mtime)[::-1]
        for old in newest_first[8:]:
            shutil.rmtree(old, ignore_errors=True)
    (library,) = (folder / 'soft_mm').glob('_C*.so')
    return library, (folder / 'messages.txt').read_text()


def test_loading_the_cuda_build_registers_the_ops(cuda_build):
    done = python(
        '-c',
        f"""
import torch
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location('soft_mm._C', {str(cuda_build[0])!r})
spec.loader.exec_module(module_from_spec(spec))
for op in 'squared_distance', 'exact_gaussian_kernel', 'weighted_differences':
    for device in 'CPU', 'CUDA':
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f'soft_mm::{{op}}', device), op
""",
    )
    assert done.returncode == 0, done.stderr


def test_no_kernel_spills_registers(cuda_build):
    report = '\n'.join(
        re.findall(r'.*(?:entry function|bytes spill|Used \d+ registers).*', cuda_build[1])
    )
    (ROOT / 'work_dirs').mkdir(exist_ok=True)
    (ROOT / 'work_dirs/ptxas.txt').write_text(f'{report}\n')
    kernels = report.count('entry function')
    spills = re.findall(r'(\d+) bytes spill stores, (\d+) bytes spill loads', report)
    # Four dtypes of distance, kernel and weighted differences.
    assert kernels == 4 * 3 * len(architectures())
    assert spills == kernels * [('0', '0')]


def test_cuda_without_nvcc_is_an_error(tmp_path):
    done = python('setup.py', '--name', FORCE_CUDA='1', CUDA_HOME=str(tmp_path))
    assert done.returncode
    assert 'FORCE_CUDA=1 needs nvcc in $CUDA_HOME/bin' in done.stderr


@pytest.mark.parametrize(
    ('start', 'environment', 'reason'),
    [
        (
            '',
            {'CXX': 'no-such-compiler'},
            'building them needs Linux and a C++ compiler (CXX=no-such-compiler)',
        ),
        (
            'import sys; sys.modules["torch"] = None; ',
            {},
            '(with pip, pass --no-build-isolation)',
        ),
    ],
)
def test_installs_without_compiler_or_torch(start, environment, reason):
    done = python('-c', f'{start}import runpy; runpy.run_path("setup.py")', '--name', **environment)
    assert done.stdout == 'soft_mm\n'
    assert 'soft_mm is installed without its compiled ops: ' in done.stderr
    assert reason in done.stderr


WITHOUT = {
    'soft_mm._C is not built': 'raise ModuleNotFoundError(name)',
    'soft_mm._C cannot be loaded (undefined symbol: c10)': 'raise ImportError("undefined symbol: c10")',
}


@pytest.mark.parametrize('reason', WITHOUT)
def test_the_package_works_without_the_extension(reason):
    done = python(
        '-c',
        f"""
import sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name == 'soft_mm._C':
            {WITHOUT[reason]}
sys.meta_path.insert(0, Finder)
import torch
from soft_mm.ops import gaussian_kernel
from soft_mm.ops.extension import missing
from soft_mm.ops.gaussian_kernel.extension import exact_gaussian_kernel
q = torch.ones(3, 4)
assert gaussian_kernel(q, q).eq(1).all()
assert missing() == missing('cuda') == {reason!r}
exact_gaussian_kernel(q, q)
""",
    )
    assert (
        'RuntimeError: the exact Gaussian kernel needs the compiled ops: '
        f'{reason}; build it with `pip install --no-build-isolation -e .`'
    ) in done.stderr
