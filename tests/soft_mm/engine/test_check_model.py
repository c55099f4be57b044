"""Parameters without a gradient are named after the first iteration, before PyTorch stops at them."""

import functools
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import Runner, amp
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset

from soft_mm import InLineSwin

SMALL = dict(
    arch=dict(channels=(8,) * 4, num_heads=(1,) * 4, depths=(1,) * 4, inline_depths=(1, 1, 0, 0)),
    img_size=32,
    window_size=2,
)
NAMES = 'backbone.stages.0.norm.weight, backbone.stages.0.norm.bias.'


class Images(Dataset):
    metainfo = {}

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return dict(inputs=torch.randn(3, 32, 32))


class Model(BaseModel):
    """A model that uses some of its backbone's feature maps, as an FPN with a start_level does."""

    def __init__(self, used: slice, **kwargs) -> None:
        super().__init__()
        self.backbone = InLineSwin(**SMALL, **kwargs)
        self.used = used

    def forward(self, inputs: Tensor, mode: str) -> dict[str, Tensor]:
        return dict(loss=sum(m.square().mean() for m in self.backbone(inputs)[self.used]))


def train(
    folder: Path,
    used: slice,
    optim: dict | None = None,
    frozen: str | None = None,
    launcher: str = 'none',
    cfg: dict | None = None,
    **kwargs,
) -> str:
    """Train for two iterations; return the warnings in the log."""
    model = Model(used, **kwargs)
    if frozen:
        model.get_submodule(frozen).requires_grad_(False)
    runner = Runner(
        model,
        str(folder),
        DataLoader(Images(), batch_size=2),
        train_cfg=dict(by_epoch=False, max_iters=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01), **(optim or {})),
        custom_hooks=[dict(type='soft_mm.CheckModelHook')],
        launcher=launcher,
        experiment_name=str(folder).replace('/', '-'),
        cfg=cfg or {},
    )
    runner.train()
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    return warnings(folder)


def warnings(folder: Path) -> str:
    (log,) = folder.glob('*/*.log')
    return '\n'.join(line for line in log.read_text().splitlines() if 'WARNING' in line)


def test_names_the_parameters_and_what_to_set(tmp_path):
    log = train(tmp_path, slice(1, None))
    assert log.count('got no gradient') == 1
    assert f'in the first iteration, these parameters got no gradient: {NAMES}' in log
    assert 'set model.backbone.out_indices=(1, 2, 3), and' in log
    assert 'find_unused_parameters=True' in log


def test_names_a_few_of_many(tmp_path):
    log = train(tmp_path, slice(0, 1))
    assert 'backbone.stages.1.patch_embed.norm.weight' in log
    assert 'backbone.stages.3.norm' not in log
    assert ' more. ' in log
    assert 'out_indices=(0,), ' in log


@pytest.mark.parametrize(
    ('used', 'kwargs'),
    [
        (slice(None), {}),
        (slice(None), dict(out_indices=(1, 2, 3))),
        (slice(1, None), dict(frozen='backbone.stages.0.norm')),
        (slice(1, None), dict(cfg=dict(find_unused_parameters=True))),
        (slice(1, None), dict(cfg=dict(model_wrapper_cfg=dict(find_unused_parameters=True)))),
    ],
)
def test_no_warning(used, kwargs, tmp_path):
    assert 'got no gradient' not in train(tmp_path, used, **kwargs)


def test_gradients_that_are_accumulated(tmp_path):
    """The first step follows the second iteration."""
    assert NAMES in train(tmp_path, slice(1, None), dict(accumulative_counts=2))
    assert 'no gradient' not in train(tmp_path / 'all', slice(None), dict(accumulative_counts=2))


def test_a_first_step_that_loss_scaling_skips(tmp_path, monkeypatch):
    """MMEngine supports mixed precision on GPUs only; this lets it run on a CPU."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    scaler = functools.partial(torch.amp.GradScaler, 'cpu')
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', scaler)
    monkeypatch.setattr(amp, 'autocast', functools.partial(torch.autocast, 'cpu'))
    options = dict(type='AmpOptimWrapper', dtype='float16', loss_scale=dict(init_scale=2.0**120))
    assert NAMES in train(tmp_path, slice(1, None), options)
    assert 'got no gradient' not in train(tmp_path / 'all', slice(None), options)


@pytest.fixture
def process_group(tmp_path, monkeypatch):
    """A process group of one process, whose DDP is as strict as that of many."""
    monkeypatch.setenv('LOCAL_RANK', '0')
    store = distributed.FileStore(str(tmp_path / 'store'), 1)
    distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize('finds_unused', [False, True])
def test_distributed_training(finds_unused, process_group, tmp_path):
    wrapper = dict(type='MMDistributedDataParallel', find_unused_parameters=finds_unused)
    options = dict(launcher='pytorch', cfg=dict(model_wrapper_cfg=dict(wrapper, device_ids=None)))
    folder = tmp_path / 'work'
    if finds_unused:
        assert 'got no gradient' not in train(folder, slice(1, None), **options)
        return
    with pytest.raises(RuntimeError, match='Expected to have finished reduction'):
        train(folder, slice(1, None), **options)
    assert NAMES in warnings(folder)
