import pytest
import torch
from mmengine.config import Config
from torch import nn

from soft_mm.engine import build_runner

pytestmark = pytest.mark.skipif(torch.__version__ < (2, 6), reason='this torch has no fully_shard')


@pytest.fixture
def strategy(tmp_path):
    from soft_mm.engine.strategies import FSDPStrategy

    return FSDPStrategy(work_dir=str(tmp_path), env_kwargs=dict(launcher='none'))


def test_training_without_a_launcher_raises(strategy):
    optim_wrapper = dict(optimizer=dict(type='SGD', lr=1.0))
    with pytest.raises(RuntimeError, match='only in a distributed run.*tools/dist_train.sh'):
        strategy.prepare(nn.Linear(1, 1), optim_wrapper=optim_wrapper)


def test_testing_without_a_launcher(strategy):
    model = nn.Linear(1, 1)
    strategy.prepare(model)
    assert strategy.model is model


def test_averaged_weights_are_refused_when_the_runner_is_built(tmp_path):
    cfg = dict(
        runner_type='FlexibleRunner',
        strategy=dict(type='soft_mm.FSDPStrategy'),
        model=dict(type='soft_mm.InLineDeiT', arch='tiny'),
        custom_hooks=[dict(type='EMAHook')],
        env_cfg={},
        work_dir=str(tmp_path),
        experiment_name=tmp_path.name,
    )
    with pytest.raises(ValueError, match='must not have EMAHook.*remove it from custom_hooks, or'):
        build_runner(Config(cfg))


@pytest.mark.parametrize(
    ('checkpoint', 'message'),
    [
        (dict(optimizer={}, ema_state_dict={}), r'averaged weights \(ema_state_dict\).*load_from'),
        ({}, 'only weights and no optimizer state'),
    ],
)
def test_checkpoints_that_it_does_not_resume_from(checkpoint, message, strategy, tmp_path):
    model = nn.Linear(1, 1)
    path = tmp_path / 'checkpoint.pth'
    torch.save(dict(checkpoint, state_dict=nn.Linear(1, 1).state_dict(), meta={}), path)
    before = model.weight.item()
    strategy.prepare(model)
    with pytest.raises(ValueError, match=f'{path} contains {message}'):
        strategy.resume(str(path))
    assert model.weight.item() == before


def test_a_bare_state_dict_is_loaded(strategy, tmp_path):
    model, other = nn.Linear(1, 1), nn.Linear(1, 1)
    torch.save(other.state_dict(), tmp_path / 'weights.pth')
    strategy.prepare(model)
    strategy.load_checkpoint(str(tmp_path / 'weights.pth'))
    assert model.weight.item() == other.weight.item()


def test_clipping_by_the_largest_gradient_is_refused(strategy):
    """A process with an empty shard could not compute it."""
    clip_grad = dict(max_norm=1.0, norm_type='inf')
    options = dict(optimizer=dict(type='SGD', lr=1.0), clip_grad=clip_grad)
    with pytest.raises(ValueError, match="clip_grad.norm_type must be finite.*, got 'inf'"):
        strategy.build_optim_wrapper(options, nn.Linear(1, 1))
