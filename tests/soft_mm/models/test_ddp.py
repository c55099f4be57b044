"""Gradients of two processes, which on a GPU share one card."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def test_gradients_are_those_of_the_whole_batch(device, request, monkeypatch):
    if device == 'cuda':
        request.getfixturevalue('gpu')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    script = Path(__file__).with_name('ddp_gradients.py')
    done = subprocess.run([*torchrun, script, device], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(f'rank {rank} agrees' in done.stdout for rank in (0, 1))
