import os
import subprocess
import sys

import pytest
import torch

import soft_mm
from soft_mm.ops.extension import missing


def report(**environment: str) -> list[str]:
    selected = ('SOFT_MM_BACKEND', 'SOFT_MM_KERNEL')
    environment = {k: v for k, v in os.environ.items() if k not in selected} | environment
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


def test_first_line_lists_the_backends(lines):
    cpu = 'torch' if missing() else 'torch and the extension'
    assert lines[0].startswith(f'backends: {cpu} on CPU, ')
    assert '; extension: ' in lines[0]
    assert '; triton: ' in lines[0]
    assert lines[0].endswith(f'; CUDA devices: {torch.cuda.device_count()}')


def test_backend_selected_by_the_environment_is_reported():
    expected = 'backends: reference, from the environment; '
    assert report(SOFT_MM_BACKEND='reference')[0].startswith(expected)


def test_versions_and_devices_are_listed(lines):
    fields = dict(line.split(': ', 1) for line in lines)
    assert fields['soft_mm'] == soft_mm.__version__
    assert fields['torch'].startswith(torch.__version__)
    assert 'mmengine)' in fields['mmengine']
    assert {'python', 'triton', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'cpu'} <= fields.keys()
