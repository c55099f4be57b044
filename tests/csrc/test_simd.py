"""Every version of the loops on the CPU passes the tests of the compiled ops.

The extension follows PyTorch's choice, which ATEN_CPU_CAPABILITY overrides once for a process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from soft_mm.ops.extension import missing

ROOT = Path(__file__).parents[2]
TESTS = [
    'tests/soft_mm/ops/test_dynamic_conv.py',
    'tests/soft_mm/ops/test_gaussian_product.py',
    'tests/csrc/test_gaussian_kernel.py',
]
CONVOLVE = """
import torch
from soft_mm.ops import dynamic_conv
torch.manual_seed(0)
# Uniform numbers: PyTorch's normal ones depend on the version too.
out = dynamic_conv(torch.rand(1, 64, 16), torch.rand(1, 16, 3, 3), (8, 8), backend='extension')
print(torch.backends.cpu.get_cpu_capability(), *out.flatten().tolist())
"""
VERSIONS = ['AVX512', 'AVX2', 'DEFAULT']  # as PyTorch names them


@pytest.fixture(params=VERSIONS)
def environment(request) -> dict[str, str]:
    """The environment of a process that runs one version."""
    if missing():
        pytest.skip(missing())
    native = torch.backends.cpu.get_cpu_capability()
    if native not in VERSIONS or VERSIONS.index(request.param) < VERSIONS.index(native):
        pytest.skip(f'this processor has {native}, not {request.param}')
    return {**os.environ, 'ATEN_CPU_CAPABILITY': request.param.lower()}


def python(*args: str, env: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, cwd=ROOT, env=env
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_every_version_passes(environment):
    report = python('-m', 'pytest', '-q', '-p', 'no:cacheprovider', *TESTS, env=environment)
    assert ' passed' in report


def test_the_versions_are_chosen():
    """Only those with AVX fuse multiplication and addition, so that they round differently."""
    if missing():
        pytest.skip(missing())
    if torch.backends.cpu.get_cpu_capability() == 'DEFAULT':
        pytest.skip('this processor has no AVX2')
    native, *fused = python('-c', CONVOLVE, env={**os.environ}).split()
    default, *separate = python(
        '-c', CONVOLVE, env={**os.environ, 'ATEN_CPU_CAPABILITY': 'default'}
    ).split()
    assert native != default == 'DEFAULT'
    assert fused != separate
    fused, separate = (torch.tensor(list(map(float, x))) for x in (fused, separate))
    torch.testing.assert_close(fused, separate, atol=10 * torch.finfo(torch.float32).eps, rtol=0)
