import os
import subprocess
import sys

import pytest
import torch

import soft_mm
from soft_mm.ops.extension import missing


def report(**environment: str) -> list[str]:
    environment = {k: v for k, v in os.environ.items() if k != 'SOFT_MM_KERNEL'} | environment
    return subprocess.run(
        [sys.executable, '-m', 'soft_mm.env'],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    ).stdout.splitlines()


@pytest.fixture(scope='module')
def lines() -> list[str]:
    return report()


def test_the_first_line_tells_which_kernels_are_in_use(lines):
    cpu = 'torch' if missing() else 'torch and the extension'
    assert lines[0].startswith(f'kernels: {cpu} on CPU, ')
    assert '; extension: ' in lines[0]
    assert '; triton: ' in lines[0]
    assert lines[0].endswith(f'; CUDA devices: {torch.cuda.device_count()}')


def test_the_environment_s_choice_is_told():
    assert report(SOFT_MM_KERNEL='reference')[0].startswith('kernels: SOFT_MM_KERNEL=reference; ')


def test_versions_and_devices_follow(lines):
    told = dict(line.split(': ', 1) for line in lines)
    assert told['soft_mm'] == soft_mm.__version__
    assert told['torch'].startswith(torch.__version__)
    assert 'mmengine)' in told['mmengine']
    assert {'python', 'triton', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'cpu'} <= told.keys()
