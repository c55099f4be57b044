"""A training that died before it removed old checkpoints removes them when it is resumed."""

import pytest
import torch
from mmengine.model import BaseModel
from torch.utils.data import TensorDataset

from soft_mm.engine import Runner
from soft_mm.engine.hooks.checkpoint import _DeferredRemovalBackend


class Weight(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, *data, mode: str) -> dict:
        return dict(loss=self.weight)


def test_replaced_checkpoints_are_removed(tmp_path, monkeypatch):
    def train(resume: bool) -> None:
        Runner(
            Weight(),
            str(tmp_path),
            train_dataloader=dict(
                dataset=TensorDataset(torch.zeros(4)),
                sampler=dict(type='InfiniteSampler'),
                batch_size=2,
                num_workers=0,
            ),
            train_cfg=dict(by_epoch=False, max_iters=5),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            default_hooks=dict(
                checkpoint=dict(
                    type='soft_mm.CheckpointHook', by_epoch=False, interval=1, max_keep_ckpts=2
                )
            ),
            resume=resume,
            experiment_name=f'{tmp_path}-{resume}',
            log_level='ERROR',
        ).train()

    def die(backend) -> None:
        if (tmp_path / 'iter_3.pth').exists():
            raise InterruptedError

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(_DeferredRemovalBackend, 'remove_pending', die)
        train(resume=False)
    assert (tmp_path / 'iter_1.pth').exists()
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_3.pth'))
    train(resume=True)
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_4.pth', 'iter_5.pth']
