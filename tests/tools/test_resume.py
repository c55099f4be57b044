"""A run that is killed repeatedly and resumed ends with the same bits as an uninterrupted one."""

import random
import signal

import pytest
import torch

KILL = 'os.kill(os.getpid(), signal.SIGKILL)'
IN_STEP = f"""
import itertools, signal
from mmengine.model import BaseModel
steps, train_step = itertools.count(1), BaseModel.train_step
def killed(self, *args, **kwargs):
    if next(steps) == {{}}:
        {KILL}
    return train_step(self, *args, **kwargs)
BaseModel.train_step = killed
"""
IN_WRITE = f"""
import itertools, signal
from mmengine.fileio import LocalBackend
writes = itertools.count(1)
put = LocalBackend.put
def killed(self, obj, filepath):
    if next(writes) == {{}}:
        put(self, obj[:len(obj) // 2], filepath)
        {KILL}
    put(self, obj, filepath)
LocalBackend.put = killed
"""
BY_ITERATION = [
    'train_cfg._delete_=True',
    'train_cfg.type=IterBasedTrainLoop',
    'train_cfg.max_iters=24',
    'train_cfg.val_interval=7',
    'train_dataloader.sampler.type=InfiniteSampler',
    'param_scheduler.1.by_epoch=False',
    'param_scheduler.1.convert_to_iter_based=False',
    'param_scheduler.1.end=24',
    'default_hooks.checkpoint.by_epoch=False',
    'default_hooks.checkpoint.interval=5',
    'default_hooks.logger.log_metric_by_epoch=False',
    'log_processor.by_epoch=False',
]
LOOPS = {
    'epochs': ([], 'epoch_4.pth'),
    'epochs-workers': (
        ['train_dataloader.num_workers=2', 'train_dataloader.persistent_workers=True'],
        'epoch_4.pth',
    ),
    'iterations': (BY_ITERATION, 'iter_24.pth'),
    'iterations-workers': ([*BY_ITERATION, 'train_dataloader.num_workers=2'], 'iter_24.pth'),
}


@pytest.mark.parametrize('loop', LOOPS)
def test_ends_bit_equal(loop, small_digits, training_state, fork_tool, tmp_path):
    config, options = small_digits
    more, last = LOOPS[loop]
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    done = fork_tool('train.py', config, '--work-dir', whole, *options, *more)
    assert done.returncode == 0, done.stdout[-3000:]

    chance = random.Random(loop)
    for how in (
        IN_STEP.format(chance.randint(8, 12)),
        IN_WRITE.format(chance.randint(1, 3)),
        IN_STEP.format(chance.randint(1, 9)),
    ):
        done = fork_tool(
            'train.py', config, '--work-dir', killed, '--resume', *options, *more, before=how
        )
        assert done.returncode == -signal.SIGKILL, done.stdout[-3000:]
        for checkpoint in killed.glob('*.pth'):
            torch.load(checkpoint, weights_only=False)  # the file is complete
        more = [*more, 'randomness.seed=None']  # the seed has to come from the checkpoint too
    done = fork_tool('train.py', config, '--work-dir', killed, '--resume', *options, *more)
    assert done.returncode == 0, done.stdout[-3000:]
    assert 'resumed epoch: ' in done.stdout
    assert training_state(killed / last) == training_state(whole / last)
    assert not list(killed.glob('.*'))
