"""Two processes, with DDP and in shards, take the steps of one, whatever the options of training.

torchrun runs this file as a script, once for all options; importing the toolboxes for each, as
``tests/tools/test_processes.py`` does for the commands, would take minutes.
"""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dist import get_rank, get_world_size
from mmengine.model import BaseModel
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import amp
from torch import Tensor, nn
from torch.utils.data import Dataset

from soft_mm.engine import build_runner, process_group

pytestmark = pytest.mark.skipif(torch.__version__ < (2, 6), reason='this torch has no fully_shard')

STAGES = dict(channels=(8, 8, 16, 16), num_heads=(1, 1, 2, 2), depths=(1, 1, 1, 1))
FAMILIES = {
    'InLinePVT': dict(arch=dict(STAGES, mlp_ratios=(2, 2, 2, 2))),
    # Running statistics would be those of each process.
    'SOFT': dict(arch=dict(STAGES, kernel_sizes=(9, 5, 3)), norm_eval=True),
    'InLineDeiT': dict(arch=dict(channels=(16,), num_heads=(2,), depths=(2,))),
    'InLineSwin': dict(arch=dict(STAGES, inline_depths=(1, 1, 0, 0)), window_size=2),
    'InLineCSwin': dict(arch=STAGES),
}
FIRST, *OTHERS = FAMILIES
STEPS, BATCH = 5, 8  # iterations, and images in each
TOKENS = 8 * 8  # of an image, in the largest feature map
NORM, VALUE = 1.0, 1e-2  # to which gradients are clipped
SCALE = 2.0**10  # of the loss at first
CLIPPED = dict(clip_grad=dict(max_norm=NORM))
ALL = dict(accumulative_counts=2, **CLIPPED)
BFLOAT16 = dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=dict(enabled=False))
FLOAT16 = dict(type='AmpOptimWrapper', dtype='float16', loss_scale=dict(init_scale=SCALE))
# The options of the optimizer's wrapper and of the model; mixed precision is of a model in fp32.
CASES = {
    'accumulated': (dict(accumulative_counts=2), {}),
    'clipped by the norm': (CLIPPED, {}),
    'clipped by value': (dict(clip_grad=dict(type='value', clip_value=VALUE)), {}),
    'checkpointed': ({}, dict(with_cp=True)),
    'all': (ALL, dict(with_cp=True)),
    'bfloat16': (BFLOAT16, dict(dtype='float32')),
    'bfloat16 and all': (BFLOAT16 | ALL, dict(dtype='float32', with_cp=True)),
    'float16': (FLOAT16 | CLIPPED, dict(dtype='float32')),
    'float16 and an overflow': (FLOAT16 | CLIPPED, dict(dtype='float32', overflow=2)),
}
# Two processes add the same gradients in another order, in fp64. In mixed precision, they round those of
# two halves of a batch to half precision, and one process those of the batch.
TOLERANCE = {
    torch.float64: STEPS * BATCH * TOKENS * 2**-53,
    torch.bfloat16: STEPS * 2**-8,
    torch.float16: STEPS * 2**-11,
}


@DATASETS.register_module()
class RandomImages(Dataset):
    metainfo = {}

    def __init__(self, dtype: str) -> None:
        self.dtype = getattr(torch, dtype)

    def __len__(self) -> int:
        return STEPS * BATCH

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        numbers = torch.Generator().manual_seed(index)
        image, target = (
            torch.randn(size, generator=numbers, dtype=self.dtype) for size in ((3, 32, 32), (1,))
        )
        return dict(inputs=image, targets=target)


@MODELS.register_module()
class Regressor(BaseModel):
    """A backbone and a linear layer, with the mean squared error as the loss.

    Args:
        overflow: index of the forward pass after which the last process computes infinity as the
            gradient of the linear layer's bias. In shards, only the first process keeps that gradient.
    """

    def __init__(self, backbone: dict, dtype: str, overflow: int | None) -> None:
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.head = nn.Linear(self.backbone.out_channels[-1], 1)
        self.overflow = overflow
        self.passes = 0
        self.to(getattr(torch, dtype))

    def init_weights(self) -> None:
        super().init_weights()
        self.start = {name: p.detach().clone() for name, p in self.named_parameters()}

    def forward(self, inputs: Tensor, targets: Tensor, mode: str) -> dict[str, Tensor]:
        out = self.head(self.backbone(inputs)[-1])
        self.out_dtype = out.dtype
        loss = (out - targets).square().mean()
        if self.passes == self.overflow and get_rank() == get_world_size() - 1:
            bias = self.head.bias.clone()
            bias.register_hook(lambda gradient: torch.full_like(gradient, float('inf')))
            loss = loss + 0 * bias.sum()
        self.passes += 1
        return dict(loss=loss)


def allow_mixed_precision_on_cpus(setattr: Callable = setattr) -> None:
    """MMEngine supports mixed precision on GPUs only."""
    setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    setattr(amp_optimizer_wrapper, 'GradScaler', functools.partial(torch.amp.GradScaler, 'cpu'))
    setattr(amp, 'autocast', functools.partial(torch.autocast, 'cpu'))


def train(folder: Path, family: str, case: str, **launch) -> dict:
    """Train; return what the run did to the parameters, and what it measured."""
    wrapper, model = CASES[case]
    model = dict(dtype='float64', overflow=None, with_cp=False) | model
    cfg = dict(
        model=dict(
            type='Regressor',
            dtype=model['dtype'],
            overflow=model['overflow'],
            backbone=dict(
                FAMILIES[family],
                type=f'soft_mm.{family}',
                img_size=32,
                out_type='avg_featmap',
                with_cp=model['with_cp'],
            ),
        ),
        train_dataloader=dict(
            batch_size=BATCH // get_world_size(),
            num_workers=0,
            dataset=dict(type='RandomImages', dtype=model['dtype']),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=STEPS),
        optim_wrapper=dict(wrapper, optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        default_hooks=dict(checkpoint=None),
        custom_hooks=[dict(type=f'soft_mm.{name}Hook') for name in ('BadNumbers', 'CheckModel')],
        env_cfg={},
        randomness=dict(seed=0),
        work_dir=str(folder),
        experiment_name=f'{family} {case} {launch} {folder}',
    )
    runner = build_runner(Config(cfg | launch))
    runner.train()
    model = getattr(runner.model, 'module', runner.model)
    full = {
        name: getattr(p, 'full_tensor', lambda p=p: p)() for name, p in model.named_parameters()
    }
    norms = runner.message_hub.log_scalars.get('train/grad_norm')
    scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
    return dict(
        update=torch.cat(
            [(full[k] - before).detach().flatten() for k, before in model.start.items()]
        ),
        norms=norms.data[0].tolist() if norms else [],
        dtype=model.out_dtype,
        scale=scaler and scaler.get_scale(),
    )


def main(folder: str, family: str, *cases: str) -> None:
    """Train in this process group; write what each process got."""
    allow_mixed_precision_on_cpus()
    cfg = Config(dict(launcher='pytorch'))
    with process_group(cfg):
        ways = {
            'DDP': {},
            'shards': dict(
                runner_type='FlexibleRunner', strategy=dict(type='soft_mm.FSDPStrategy')
            ),
        }
        results = {
            case: {
                way: train(Path(folder, way), family, case, **cfg, **options)
                for way, options in ways.items()
            }
            for case in cases
        }
        torch.save(results, f'{folder}/rank{get_rank()}.pth')


@pytest.fixture(scope='module')
def launch(tmp_path_factory):
    """Train a family in two processes, once for all tests."""

    @functools.cache
    def launch(family: str) -> tuple[subprocess.CompletedProcess, Path]:
        folder = tmp_path_factory.mktemp('two')
        command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
        cases = CASES if family == FIRST else ['all']
        done = subprocess.run(
            [*command, '--nproc-per-node', '2', __file__, folder, family, *cases],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {'OMP_NUM_THREADS': '1'},
        )
        return done, folder

    return launch


@pytest.mark.parametrize(
    ('family', 'case'),
    [
        *((FIRST, case) for case in CASES),
        *(pytest.param(family, 'all', marks=pytest.mark.long) for family in OTHERS),
    ],
)
def test_two_processes_take_the_steps_of_one(family, case, launch, tmp_path, monkeypatch):
    done, folder = launch(family)
    assert done.returncode == 0, done.stdout[-5000:]
    first, last = (torch.load(folder / f'rank{rank}.pth')[case] for rank in (0, 1))
    allow_mixed_precision_on_cpus(monkeypatch.setattr)
    one = train(tmp_path, family, case)
    wrapper, model = CASES[case]
    assert one['dtype'] == getattr(torch, wrapper.get('dtype', 'float64'))
    if 'max_norm' in wrapper.get('clip_grad', {}):
        assert len(one['norms']) == -(-STEPS // wrapper.get('accumulative_counts', 1))
        assert min(one['norms']) > NORM
    if wrapper.get('dtype') == 'float16':
        assert one['scale'] == (SCALE / 2 if 'overflow' in model else SCALE)

    tolerance = TOLERANCE[one['dtype']]
    for way in 'DDP', 'shards':
        result = first[way]
        difference = (result['update'] - one['update']).norm() / one['update'].norm()
        assert difference < tolerance, way
        assert result['norms'] == pytest.approx(one['norms'], rel=tolerance), way
        assert torch.equal(result['update'], last[way]['update']), way
        for name in 'dtype', 'scale':
            assert result[name] == last[way][name] == one[name], way


if __name__ == '__main__':
    main(*sys.argv[1:])
