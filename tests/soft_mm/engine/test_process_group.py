"""The process group of a distributed run, started by torchrun."""

import subprocess
import sys

import pytest
import torch

# What tools/train.py does, with a minimal model in a reference cycle like that of a runner.
SCRIPT = """
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODEL_WRAPPERS
from torch import distributed, nn

from soft_mm.engine import process_group


def threads():
    names = [path.read_text() for path in Path('/proc/self/task').glob('*/comm')]
    return sum('gloo' in name for name in names)


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x):
        return self.layer(x)


cfg = Config(dict(launcher='pytorch'))
with process_group(cfg):
    wrapper = MODEL_WRAPPERS.build(dict(cfg.model_wrapper_cfg, module=Model()))
    runner = {'model': wrapper}
    runner['self'] = runner
    rank = distributed.get_rank()
    wrapper(torch.full((1, 2), float(rank))).sum().backward()
    assert wrapper.module.layer.weight.grad.tolist() == [[0.5, 0.5]]  # mean over ranks 0 and 1
    assert threads()
    del wrapper, runner
assert not distributed.is_initialized()
sys.stdout.write(f'threads left: {threads()}\\n')  # in one write: both ranks share stdout
"""


@pytest.mark.skipif(torch.__version__ < (2, 6), reason="this torch's threads have no names")
def test_process_group_leaves_no_threads(tmp_path):
    (tmp_path / 'script.py').write_text(SCRIPT)
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--standalone',
            '--nproc-per-node',
            '2',
            tmp_path / 'script.py',
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('threads left: 0') == 2
