"""Two processes train as one does with the doubled batch."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SOFT = """dict(arch=dict(_delete_=True, channels=(16, 16, 16, 32), num_heads=(1, 1, 1, 2),
                         depths=(1, 1, 1, 1), kernel_sizes=(9, 5, 3)), drop_path_rate=0.)"""
INLINE = """dict(_delete_=True, type='soft_mm.InLinePVT', out_type='avg_featmap',
                 arch=dict(channels=(16, 16, 16, 32), num_heads=(1, 1, 1, 2),
                           depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2)))"""
CONFIG = """
_base_ = {base!r}
custom_imports = dict(imports=['soft_mm', 'two_processes'], allow_failed_imports=False)
sync_bn = {sync_bn!r}
model = dict(backbone={backbone}, train_cfg=None)
data_root = {data!r}
train_dataloader = dict(batch_size={batch}, drop_last=True, dataset=dict(
    data_root=data_root, pipeline=[dict(type='LoadImageFromFile'),
                                   dict(type='Resize', scale=(64, 64)), dict(type='PackInputs')]))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(_delete_=True, type='SGD', lr=0.05, weight_decay=0.05))
custom_hooks = [dict(type='SaveEveryRank')]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(save_best=None))
train_cfg = dict(max_epochs=1)
"""


@pytest.fixture
def train(small_digits, tmp_path):
    """Train in a number of processes, 8 images a step in all; the work dir."""

    def run(processes: int, backbone: str, sync_bn: str | None) -> Path:
        base, (_, data, *_) = small_digits
        work_dir = tmp_path / f'{processes}-{sync_bn}'
        work_dir.mkdir()
        config = work_dir / 'config.py'
        config.write_text(CONFIG.format(
            base=str(ROOT / base), sync_bn=sync_bn, backbone=backbone, batch=8 // processes,
            data=data.split('=')[1]))
        done = subprocess.run(
            ['tools/dist_train.sh', config, str(processes), '--work-dir', work_dir], cwd=ROOT,
            text=True, capture_output=True, env=os.environ | {
                'PATH': f'{ROOT / ".venv/bin"}:{os.environ["PATH"]}', 'PORT': '29521',
                'PYTHONPATH': str(ROOT / 'tests/tools'), 'OMP_NUM_THREADS': '1'})
        assert done.returncode == 0, done.stderr[-3000:]
        return work_dir

    return run


def weights(folder: Path, rank: int = 0) -> dict:
    return torch.load(folder / f'rank{rank}.pth')


def scalars(folder: Path, name: str) -> list[float]:
    (file, ) = folder.glob('*/vis_data/scalars.json')
    return [line[name] for line in map(json.loads, file.read_text().splitlines()) if name in line]


def farthest(one: dict, other: dict) -> float:
    """The largest difference of all weights, relative to the largest of each.

    A bias before a batch norm has no gradient but rounding, which is relative to nothing.
    """
    assert one.keys() == other.keys()
    return max(((a.double() - b).abs().max() / b.double().abs().max().clamp(min=0.01)).item()
               for a, b in zip(one.values(), other.values()))


@pytest.mark.parametrize(('backbone', 'sync_bn'), [(SOFT, 'torch'), (INLINE, None)])
def test_two_processes_are_one_with_the_doubled_batch(backbone, sync_bn, train):
    one, two = (train(processes, backbone, sync_bn) for processes in (1, 2))
    assert farthest(weights(two, 1), weights(two, 0)) == 0
    assert farthest(weights(two), weights(one)) < 1e-4
    # Evaluated on both processes' images, once each.
    assert scalars(two, 'accuracy/top1') == pytest.approx(scalars(one, 'accuracy/top1'))
    assert len(list(two.glob('*/*.log'))) == 1
    assert sorted(p.name for p in two.glob('epoch_*.pth')) == ['epoch_1.pth']


def test_batch_norm_that_is_not_synchronised_shows(train):
    """Each process normalises its own images, and averages other statistics."""
    one, two = (train(processes, SOFT, None) for processes in (1, 2))
    assert farthest(weights(two), weights(one)) > 0.1
    statistics = [{k: v for k, v in weights(two, rank).items() if 'running' in k}
                  for rank in (0, 1)]
    assert farthest(*statistics) > 0.1
