import pytest
import torch
from torch import nn


@pytest.mark.skipif(torch.__version__ < (2, 6), reason='this torch has no fully_shard')
def test_one_process_alone_is_told_how_to_start(tmp_path):
    from soft_mm.utils.fsdp import FSDPStrategy

    strategy = FSDPStrategy(work_dir=str(tmp_path), env_kwargs=dict(launcher='none'))
    with pytest.raises(RuntimeError, match='needs a distributed run.*tools/dist_train.sh'):
        strategy.prepare(nn.Linear(1, 1))
