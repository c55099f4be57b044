"""On a terminal, long work shows its progress and the time left; ``--quiet`` turns that off."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
DEIT = 'configs/imagenet/inline-deit-tiny_8xb512-300e_in1k.py'
# For each tool: the command, and patterns of the progress bars that it shows.
TOOLS = {
    'generator': (
        ['misc/make_shapes.py', '{}/shapes', '--train', '5', '--val', '2'],
        ['draw train .* 5/5', 'draw val .* 2/2'],
    ),
    'converter': (
        ['model_converters/soft_to_mm.py', '{}/theirs.pth', '{}/ours.pth'],
        ['convert .* 1/3', 'write .* 3/3'],
    ),
    'ops': (
        [
            'benchmarks/ops.py',
            '--device',
            'cpu',
            '--only',
            'newton_inverse',
            '--sizes',
            '64x64',
            '--stages',
            '1',
            '2',
        ],
        ['measure .* 2/2'],
    ),
    'backbones': (
        [
            'benchmarks/backbones.py',
            '--device',
            'cpu',
            '--only',
            'ResNet-50',
            '--sizes',
            '64x64',
            '--seconds',
            '0',
            '--turns',
            '1',
        ],
        ['64×64, training step .* 2/2'],
    ),
    'export': (
        [
            'deployment/export_onnx.py',
            DEIT,
            '{}/deit.onnx',
            '--cfg-options',
            'model.backbone.depths=(1,)',
        ],
        ['trace .* 0/4', 'compare with PyTorch .* 4/4'],
    ),
}


@pytest.fixture
def run(tmp_path):
    """Run a tool whose stderr is a terminal; return what it wrote to stdout and to the terminal."""

    def run(*command: str) -> tuple[str, str]:
        terminal, end = pty.openpty()
        process = subprocess.Popen(
            [
                sys.executable,
                '-W',
                'ignore',
                f'tools/{command[0]}',
                *(part.format(tmp_path) for part in command[1:]),
            ],
            cwd=ROOT,
            stdout=(tmp_path / 'stdout').open('w'),
            stderr=end,
            env={**os.environ, 'COLUMNS': '150', 'TERM': 'xterm', 'PYTHONWARNINGS': 'ignore'},
        )
        os.close(end)
        shown = b''
        while True:
            try:
                shown += os.read(terminal, 4096)
            except OSError:  # no process has the other end open any more
                break
        os.close(terminal)
        assert process.wait() == 0, shown.decode()
        return (tmp_path / 'stdout').read_text(), re.sub(
            r'\x1b\[[0-9;?]*[a-zA-Z]', '', shown.decode()
        )

    return run


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.long if name in ('ops', 'export') else ())
        for name in TOOLS
    ]
)
def tool(request, tmp_path) -> str:
    if request.param == 'converter':
        state = request.getfixturevalue('authors_state')('soft-tiny_2x224x224')
        torch.save(dict(state_dict=state), tmp_path / 'theirs.pth')
    return request.param


def test_a_terminal_shows_the_time_left(tool, run):
    command, bars = TOOLS[tool]
    _, shown = run(*command)
    for bar in bars:
        assert re.search(rf'{bar} +\d:\d\d:\d\d left: +(\d:\d\d:\d\d|-:--:--)', shown), shown


def test_quiet(tool, run):
    """The benchmarks still print their table, which is the result; other tools print nothing."""
    stdout, shown = run(*TOOLS[tool][0], '--quiet')
    # PyTorch warns where there is nvcc but no GPU.
    shown = [line for line in shown.splitlines() if 'No CUDA runtime' not in line]
    assert shown == []
    assert bool(stdout) == (tool in ('ops', 'backbones'))
