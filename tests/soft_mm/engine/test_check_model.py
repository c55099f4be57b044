"""What CheckModelHook finds: parameters without a gradient, and checkpoints of other classes."""

import functools
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import Runner, amp
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader, Dataset

from soft_mm import InLineSwin
from soft_mm.engine import CheckModelHook
from soft_mm.engine import Runner as StrictRunner

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


class Classifier(BaseModel):
    def __init__(self, classes: int, **kwargs) -> None:
        super().__init__()
        self.backbone = InLineSwin(**{**SMALL, **kwargs}, out_type='avg_featmap')
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, classes)

    def forward(self, inputs: Tensor, mode: str) -> dict[str, Tensor]:
        return dict(loss=self.head(self.norm(self.backbone(inputs)[0])).mean())


def classifier_runner(
    folder: Path, model: nn.Module, load_from: Path, cls: type = StrictRunner, **options
) -> Runner:
    """A runner that trains a model for one iteration in which nothing changes."""
    return cls(
        model,
        str(folder / 'work'),
        DataLoader(Images(), batch_size=2),
        train_cfg=dict(by_epoch=False, max_iters=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        default_hooks=dict(check_model=dict(type='soft_mm.CheckModelHook', **options)),
        custom_hooks=[dict(type='EMAHook', priority='ABOVE_NORMAL')],
        load_from=str(load_from),
        experiment_name=str(folder).replace('/', '-'),
    )


@pytest.fixture
def of_five(tmp_path) -> Path:
    """A checkpoint of a classifier of five classes for larger images, whose tables are resized."""
    path = tmp_path / 'five.pth'
    torch.save(dict(state_dict=Classifier(5, img_size=64).state_dict(), meta={}), path)
    return path


MISFITS = 'head.weight (5, 8) instead of (3, 8), head.bias (5,) instead of (3,)'


@pytest.mark.parametrize('cls', [StrictRunner, Runner])
def test_a_checkpoint_of_other_classes(cls, of_five, tmp_path):
    """MMEngine's runner loads what fits, and the averaged weights of EMAHook are loaded too."""
    message = f'load_from={of_five} is of another number of classes: {MISFITS}. '
    with pytest.raises(ValueError, match='set allow_other_classes=True') as raised:
        classifier_runner(tmp_path, Classifier(3), of_five, cls).train()
    assert str(raised.value).startswith(message)

    model = Classifier(3)
    head = model.head.weight.clone(), model.head.bias.clone()
    runner = classifier_runner(tmp_path / 'allowed', model, of_five, cls, allow_other_classes=True)
    runner.train()
    assert (
        warnings(tmp_path / 'allowed/work').count(f'{message}These keep their initial values') == 1
    )
    assert 'size mismatch' not in warnings(tmp_path / 'allowed/work')
    (ema,) = (hook for hook in runner.hooks if hasattr(hook, 'ema_model'))
    expected = torch.load(of_five)['state_dict']
    resized = 'backbone.stages.3.blocks.0.attn.relative_position_bias.weight'
    assert expected[resized].shape != model.state_dict()[resized].shape
    for trained in model, ema.ema_model.module:
        assert trained.head.weight.equal(head[0])
        assert trained.head.bias.equal(head[1])
        for name, tensor in trained.state_dict().items():
            if name != resized and not name.startswith('head.'):
                assert tensor.equal(expected[name]), name


def test_a_checkpoint_of_other_classes_from_ddp(of_five, tmp_path):
    checkpoint = torch.load(of_five)
    state = {f'module.{name}': tensor for name, tensor in checkpoint['state_dict'].items()}
    torch.save(state, of_five)
    model = Classifier(3)
    head = model.head.weight.clone()
    runner = classifier_runner(tmp_path, model, of_five, allow_other_classes=True)
    runner._hooks = [hook for hook in runner.hooks if type(hook).__name__ != 'EMAHook']
    runner.train()
    assert model.head.weight.equal(head)
    assert model.backbone.stages[0].patch_embed.proj.weight.equal(
        state['module.backbone.stages.0.patch_embed.proj.weight']
    )


@pytest.mark.parametrize('misfit', ['missing', 'unexpected', 'backbone', 'width'])
def test_a_checkpoint_of_another_model_is_still_refused(misfit, of_five, tmp_path):
    checkpoint = torch.load(of_five)
    state = checkpoint['state_dict']
    if misfit == 'missing':
        del state['norm.weight']
    elif misfit == 'unexpected':
        state['neck.weight'] = torch.ones(1)
    elif misfit == 'backbone':
        name = next(name for name in state if 'patch_embed' in name)
        state[name] = state[name][:1]
    else:
        state['head.weight'] = torch.ones(5, 9)
    torch.save(checkpoint, of_five)
    runner = classifier_runner(tmp_path, Classifier(3), of_five, allow_other_classes=True)
    with pytest.raises(ValueError, match='is not a checkpoint of this model(?s:.)*size mismatch'):
        runner.train()


def test_only_training_starts_from_other_classes(of_five, tmp_path):
    """A model that is tested, or whose training resumes, has the classes of its checkpoint."""
    runner = classifier_runner(tmp_path, Classifier(3), of_five, allow_other_classes=True)
    runner.call_hook('before_run')
    with pytest.raises(ValueError, match='size mismatch for head.weight'):
        runner.load_checkpoint(str(of_five))
    runner = classifier_runner(
        tmp_path / 'resumed', Classifier(3), of_five, allow_other_classes=True
    )
    runner._resume = True
    with pytest.raises(ValueError, match='size mismatch for head.weight'):
        runner.train()


def test_invalid_option():
    with pytest.raises(ValueError, match="allow_other_classes must be True or False, got 'yes'"):
        CheckModelHook(allow_other_classes='yes')
