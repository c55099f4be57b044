import pytest
import torch
from torch import nn

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
