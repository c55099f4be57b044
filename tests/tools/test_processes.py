"""Two processes train as one does with the doubled batch."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SOFT = """dict(arch=dict(_delete_=True, channels=(16, 16, 16, 32), num_heads=(1, 1, 1, 2),
                         depths=(1, 1, 1, 1), kernel_sizes=(9, 5, 3)), drop_path_rate=0.)"""
INLINE = """dict(_delete_=True, type='soft_mm.InLinePVT', out_type='avg_featmap',
                 arch=dict(channels=(16, 16, 16, 32), num_heads=(1, 1, 1, 2),
                           depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2)))"""
FAMILIES = [(SOFT, 'torch'), (INLINE, None)]  # with the sync_bn that each needs
CONFIG = """
_base_ = {base!r}
custom_imports = dict(imports=['soft_mm', 'two_processes'], allow_failed_imports=False)
sync_bn = {sync_bn!r}
model = dict(backbone={backbone}, train_cfg=None)
data_root = 'DATA'
train_dataloader = dict(batch_size={batch}, drop_last=True, dataset=dict(
    data_root=data_root, pipeline=[dict(type='LoadImageFromFile'),
                                   dict(type='Resize', scale=(64, 64)), dict(type='PackInputs')]))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=0.05, momentum=0.9, weight_decay=0.05),
    clip_grad=dict(max_norm=0.5))
custom_hooks = [dict(type='SaveEveryRank')]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(save_best=None))
train_cfg = dict(max_epochs={epochs})
"""
SHARDED = """
runner_type = 'FlexibleRunner'
strategy = dict(type='soft_mm.FSDPStrategy')
"""
FINE_TUNED = """
model['backbone'].update(frozen_stages=2, init_cfg=dict(
    type='Pretrained', checkpoint='{checkpoint}', prefix='backbone.'))
optim_wrapper.update(
    constructor='soft_mm.LayerDecayConstructor', paramwise_cfg=dict(layer_decay_rate=0.5))
"""
SPOILT = """
custom_hooks.append(dict(type='SpoilLastRank'))
default_hooks.update(bad_numbers=dict(on_bad_numbers='skip'))
"""


@pytest.fixture(scope='module')
def run(fork_tool, free_port, small_digits):
    """Run tools/train.py or test.py on a config, in a work dir that holds it."""

    def run(
        script: str, folder: Path, config: str, processes: int, *args: object, launcher: bool = True
    ) -> subprocess.CompletedProcess:
        (_, (_, data, *_)) = small_digits
        folder.mkdir(exist_ok=True)
        path = folder / 'config.py'
        path.write_text(config.replace('DATA', data.split('=')[1]))
        args = [*map(str, args), '--work-dir', str(folder)]
        if not launcher:
            before = f'sys.path.insert(0, {str(ROOT / "tests/tools")!r})'
            return fork_tool(f'{script}.py', path, *args, before=before)
        args.insert(script == 'test', str(processes))  # after the checkpoint
        return subprocess.run(
            [f'tools/dist_{script}.sh', path, *args],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ
            | {
                'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
                'PORT': free_port(),
                'PYTHONPATH': os.pathsep.join(
                    [str(ROOT / 'tests/tools'), os.environ.get('PYTHONPATH', '')]
                ),
                'OMP_NUM_THREADS': '1',
            },
        )

    return run


@pytest.fixture(scope='module')
def train(run, small_digits, tmp_path_factory):
    """Train in a number of processes, 8 images a step in all; return the work dir.

    Each run is made once for all tests, which therefore leave its files as they are. A single
    process has no launcher, which is quicker, unless it shards or synchronises batch norms.
    """
    root = tmp_path_factory.mktemp('processes')

    @functools.cache
    def train(
        processes: int,
        backbone: str,
        *args: str,
        sync_bn: str | None = None,
        sharded: bool = False,
        epochs: int = 1,
        more: str = '',
        error: str = '',
    ) -> Path:
        folder = root / f'{len(list(root.iterdir()))}'
        config = CONFIG.format(
            base=str(ROOT / small_digits[0]),
            sync_bn=sync_bn,
            backbone=backbone,
            batch=8 // processes,
            epochs=epochs,
        )
        config += SHARDED * sharded + more
        launcher = processes > 1 or sharded or sync_bn is not None
        done = run('train', folder, config, processes, *args, launcher=launcher)
        assert (done.returncode != 0) == bool(error), done.stdout[-3000:]
        assert error in done.stdout, done.stdout[-3000:]
        return folder

    return train


def weights(folder: Path, rank: int = 0) -> dict:
    return torch.load(folder / f'rank{rank}.pth')['weights']


def losses(folder: Path, processes: int) -> list[float]:
    """The loss of each step, averaged over the processes."""
    of_each = [torch.load(folder / f'rank{rank}.pth')['losses'] for rank in range(processes)]
    return torch.tensor(of_each).mean(0).tolist()


def scalars(folder: Path, name: str) -> list[float]:
    (file,) = folder.glob('*/vis_data/scalars.json')
    return [line[name] for line in map(json.loads, file.read_text().splitlines()) if name in line]


def farthest(one: dict, other: dict) -> float:
    """The largest difference of all weights, relative to the largest of each.

    A bias before a batch norm has no gradient but rounding, which is relative to nothing.
    """
    assert one.keys() == other.keys()
    return max(
        ((a.double() - b).abs().max() / b.double().abs().max().clamp(min=0.01)).item()
        for a, b in zip(one.values(), other.values())
    )


def check_equal(two: Path, one: Path, tolerance: float = 1e-4) -> None:
    """Two processes learned and measured what one did, and left one log."""
    assert farthest(weights(two, 1), weights(two, 0)) == 0
    assert farthest(weights(two), weights(one)) < tolerance
    assert losses(two, 2) == pytest.approx(losses(one, 1), rel=tolerance)
    assert scalars(two, 'grad_norm') == pytest.approx(scalars(one, 'grad_norm'), rel=tolerance)
    # Evaluated on both processes' images, once each.
    assert scalars(two, 'accuracy/top1') == pytest.approx(scalars(one, 'accuracy/top1'))
    (log,) = two.glob('*/*.log')
    assert 'got no gradient' not in log.read_text()


@pytest.mark.parametrize(('backbone', 'sync_bn'), FAMILIES)
def test_two_processes_are_one_with_the_doubled_batch(backbone, sync_bn, train):
    one, two = (train(processes, backbone, sync_bn=sync_bn) for processes in (1, 2))
    check_equal(two, one)
    assert sorted(p.name for p in two.glob('epoch_*.pth')) == ['epoch_1.pth']


def test_batch_norm_that_is_not_synchronised_shows(train):
    """Each process normalises its own images, and averages other statistics."""
    one, two = (train(processes, SOFT) for processes in (1, 2))
    assert farthest(weights(two), weights(one)) > 0.1
    statistics = [
        {k: v for k, v in weights(two, rank).items() if 'running' in k} for rank in (0, 1)
    ]
    assert farthest(*statistics) > 0.1


@pytest.mark.parametrize(('backbone', 'sync_bn'), FAMILIES)
def test_shards_are_the_same_run(backbone, sync_bn, train):
    one = train(1, backbone, sync_bn=sync_bn)
    shards = train(2, backbone, sync_bn=sync_bn, sharded=True)
    check_equal(shards, one)
    # One for each block, and one for the rest of the model.
    assert torch.load(shards / 'rank0.pth')['units'] == 4 + 1
    states = [torch.load(folder / 'epoch_1.pth', weights_only=False) for folder in (shards, one)]
    assert farthest(*(state['state_dict'] for state in states)) < 1e-4
    momentum, expected = (
        {i: x['momentum_buffer'] for i, x in state['optimizer']['state'].items()}
        for state in states
    )
    assert farthest(momentum, expected) < 1e-4
    sizes = [group['weight_decay'] for group in states[0]['optimizer']['param_groups']]
    assert sizes == [group['weight_decay'] for group in states[1]['optimizer']['param_groups']]


def test_frozen_stages_keep_their_weights_and_statistics(train):
    """Frozen parameters are not named among those without a gradient, and the others learn."""
    checkpoint = train(1, SOFT, sync_bn='torch') / 'epoch_1.pth'
    folder = train(2, SOFT, sync_bn='torch', more=FINE_TUNED.format(checkpoint=checkpoint))
    assert farthest(weights(folder, 1), weights(folder, 0)) == 0
    before = torch.load(checkpoint, weights_only=False)['state_dict']
    for name, tensor in weights(folder).items():
        if name.startswith(('backbone.stages.0.', 'backbone.stages.1.')):
            assert tensor.equal(before[name]), name
        elif tensor.ndim > 1:
            assert not tensor.equal(before[name]), name
    (log,) = folder.glob('*/*.log')
    assert 'got no gradient' not in log.read_text()


def test_either_kind_of_run_resumes_from_the_other(train, tmp_path):
    one, shards = train(1, INLINE), train(2, INLINE, sharded=True)
    resume = '--resume', str(one / 'epoch_1.pth')
    shards_from_one = train(2, INLINE, *resume, sharded=True, epochs=2)
    one_from_one = train(1, INLINE, *resume, epochs=2)
    assert farthest(weights(shards_from_one), weights(one_from_one)) < 1e-4
    one_from_shards = train(1, INLINE, '--resume', str(shards / 'epoch_1.pth'), epochs=2)
    assert farthest(weights(one_from_shards), weights(one_from_one)) < 1e-4

    path = tmp_path / 'weights.pth'
    state = torch.load(one / 'epoch_1.pth', weights_only=False)
    torch.save({k: v for k, v in state.items() if k != 'optimizer'}, path)
    train(1, INLINE, '--resume', str(path), sharded=True, error=f'{path} contains only weights')


@pytest.mark.parametrize('processes', [1, 2])
def test_a_sharded_config_is_evaluated_by_its_runner(processes, train, run, tmp_path):
    """Two processes evaluate in shards, one without a launcher evaluates without them."""
    trained = train(2, SOFT, sync_bn='torch', sharded=True)
    config, out = (trained / 'config.py').read_text(), tmp_path / 'metrics.json'
    args = trained / 'epoch_1.pth', '--out', out
    done = run('test', tmp_path / 'work', config, processes, *args, launcher=processes > 1)
    assert done.returncode == 0, done.stdout[-3000:]
    metrics = json.loads(out.read_text())['metrics']
    assert [metrics['accuracy/top1']] == pytest.approx(scalars(trained, 'accuracy/top1'))


@pytest.mark.parametrize('command', [['train.py'], ['test.py', 'x.pth']])
def test_both_commands_build_the_runner_that_the_config_names(command, fork_tool, tmp_path):
    script, *checkpoint = command
    config = 'tests/tools/digits.py'
    option = '--cfg-options', 'runner_type=NoSuchRunner'
    done = fork_tool(script, config, *checkpoint, '--work-dir', tmp_path, *option)
    assert done.returncode == 1
    assert 'NoSuchRunner is not in the' in done.stdout


def test_all_shards_skip_what_went_bad_in_one(train):
    folder = train(2, INLINE, sharded=True, more=SPOILT)
    assert farthest(weights(folder, 1), weights(folder, 0)) == 0
    assert all(x.isfinite().all() for x in weights(folder).values())
    (log,) = folder.glob('*/*.log')
    assert 'iteration 3: a value on another rank' in log.read_text()
