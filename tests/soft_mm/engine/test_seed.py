"""A training by iterations that is resumed loads the samples that it would have loaded."""

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler, Dataset

from soft_mm.engine import Runner


@DATA_SAMPLERS.register_module()
class OtherBatchSampler(BatchSampler):
    """Like mmdet's AspectRatioBatchSampler, it is of a class of which MMEngine cannot skip batches."""


class Noise(Dataset):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> list:
        return [index, torch.rand(()).item()]


class Recorder(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, *data, mode: str) -> dict:
        self.seen.append(data)
        return dict(loss=self.weight)


@pytest.mark.parametrize('sampler', ['InfiniteSampler', 'DefaultSampler'])
@pytest.mark.parametrize('batch_sampler', [None, dict(type='OtherBatchSampler', drop_last=False)])
def test_resumed_by_iteration(sampler, batch_sampler, tmp_path, monkeypatch):
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # MMEngine waits between epochs

    def train(iterations: int, resume: bool) -> list:
        runner = Runner(
            Recorder(),
            str(tmp_path),
            train_dataloader=dict(
                dataset=Noise(),
                sampler=dict(type=sampler, shuffle=True),
                batch_sampler=batch_sampler,
                batch_size=2,
                num_workers=0,
            ),
            train_cfg=dict(by_epoch=False, max_iters=iterations),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            default_hooks=dict(
                checkpoint=dict(type='soft_mm.CheckpointHook', by_epoch=False, interval=4)
            ),
            custom_hooks=[dict(type='soft_mm.SeedHook')],
            resume=resume,
            randomness=dict(seed=0),
            experiment_name=f'{tmp_path}-{iterations}-{resume}',
            log_level='ERROR',
        )
        runner.train()
        return runner.model.seen

    first, whole = train(4, resume=False), train(8, resume=False)
    assert first == whole[:4]
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_4.pth'))
    assert train(8, resume=True) == whole[4:]
