"""The recipes take effect: learning rates, weight decay, clipping and averaging of weights."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from mmdet.models.losses import GIoULoss
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage, convert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import HOOKS, MODELS, PARAM_SCHEDULERS, init_default_scope
from mmpretrain.structures import DataSample
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

ROOT = Path(__file__).parents[2]


@pytest.fixture
def train_tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    return importlib.import_module('train')


def imagenet(lr, batch, warm_up, last, decay=0.05, clip=None, ema=None, epochs=300, first=None):
    return dict(
        lr=lr,
        batch=batch,
        warm_up=warm_up,
        last=last,
        decay=decay,
        clip=clip,
        ema=ema,
        epochs=epochs,
        first=first if first else 1e-3 * lr,
    )


def soft(base, batch):
    return imagenet(base * 8 * batch / 1024, batch, 10, 5e-5, clip=1.0, ema=4e-5, first=1e-6)


def inline(batch, warm_up=20, last=5e-6, base=5e-4, **kwargs):
    scale = 8 * batch / 512
    return imagenet(base * scale, batch, warm_up, last * scale, **kwargs)


def cswin(batch, **kwargs):
    return inline(batch, last=1e-5, ema=1 - 0.9996 ** (8 * batch / 4096), **kwargs)


RECIPES = {
    **{
        f'{name}-{size}': soft(base[name], batch)
        for name in ('soft', 'soft-norm')
        for size, batch, base in (
            ('tiny_8xb128', 128, {'soft': 1e-3, 'soft-norm': 1e-3}),
            ('small_8xb128', 128, {'soft': 1e-3, 'soft-norm': 1e-3}),
            ('medium_8xb32', 32, {'soft': 3.5e-4, 'soft-norm': 4e-4}),
            ('large_8xb32', 32, {'soft': 3.3e-4, 'soft-norm': 3.3e-4}),
            ('huge_8xb32', 32, {'soft': 2.7e-4, 'soft-norm': 2.7e-4}),
        )
    },
    'inline-deit-tiny_8xb512': inline(512, clip=5.0),
    'inline-deit-small_8xb128': inline(128, clip=5.0),
    'inline-deit-base_8xb64': inline(64, clip=5.0),
    'inline-pvt-tiny_8xb128': inline(128, 5, 1e-5),
    'inline-pvt-small_8xb128': inline(128, 5, 1e-5),
    'inline-pvt-medium_8xb128': inline(128, 5, 1e-5, clip=1.0),
    'inline-pvt-large_8xb64': inline(64, 5, 1e-5, clip=1.0),
    'inline-swin-tiny_8xb128': inline(128, clip=5.0),
    'inline-swin-small_8xb128': inline(128, clip=5.0),
    'inline-swin-base_8xb64': inline(64, clip=5.0),
    'inline-swin-base_8xb64-30e': inline(64, 5, 2e-7, 2e-5, clip=5.0, decay=1e-8, epochs=30),
    'inline-cswin-tiny_8xb128': cswin(128),
    'inline-cswin-small_8xb128': cswin(128),
    'inline-cswin-base_8xb64': cswin(64, decay=0.1),
    'inline-cswin-base_8xb64-20e': inline(64, 5, 5e-8, 5e-6, decay=1e-8, epochs=20),
}


def learning_rates(cfg: Config, epochs: int, epoch_length: int) -> list[float]:
    """The learning rate of each iteration, as the runner's hooks set it."""
    optimizer = build_optim_wrapper(nn.Linear(1, 1), cfg.optim_wrapper)
    schedulers = []
    for scheduler in cfg.param_scheduler:
        scheduler = dict(scheduler)
        if scheduler.pop('convert_to_iter_based', False):
            cls = PARAM_SCHEDULERS.get(scheduler.pop('type'))
            schedulers.append(
                cls.build_iter_from_epoch(
                    **scheduler, optimizer=optimizer, epoch_length=epoch_length
                )
            )
        else:
            schedulers.append(PARAM_SCHEDULERS.build({**scheduler, 'optimizer': optimizer}))
    rates = []
    for _ in range(epochs * epoch_length):
        rates.append(optimizer.get_lr()['lr'][0])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return rates


@pytest.mark.parametrize('name', RECIPES)
def test_imagenet(name):
    (path,) = ROOT.glob(
        f'configs/imagenet/{name}*_in1k*.py'
        if name.endswith('0e')
        else f'configs/imagenet/{name}-300e_in1k*.py'
    )
    cfg, recipe = Config.fromfile(path), RECIPES[name]
    init_default_scope('mmpretrain')
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    assert cfg.optim_wrapper.optimizer.weight_decay == recipe['decay']
    clip = cfg.optim_wrapper.clip_grad
    assert (clip and clip.max_norm) == recipe['clip']
    assert cfg.train_dataloader.batch_size == recipe['batch']
    assert cfg.auto_scale_lr.base_batch_size == 8 * recipe['batch']
    assert cfg.train_cfg.max_epochs == recipe['epochs']
    averaging = [hook.momentum for hook in cfg.get('custom_hooks', []) if hook.type == 'EMAHook']
    assert averaging == ([pytest.approx(recipe['ema'])] if recipe['ema'] else [])

    rates = learning_rates(cfg, recipe['epochs'], epoch_length=4)
    warm_up = 4 * recipe['warm_up']
    assert rates[0] == pytest.approx(recipe['first'])
    assert rates[warm_up] == pytest.approx(recipe['lr'], rel=1e-3)
    assert max(rates) <= recipe['lr'] * (1 + 1e-6)
    assert rates[:warm_up] == sorted(rates[:warm_up])
    assert rates[-1] == pytest.approx(recipe['last'], rel=0.1)
    middle = (warm_up + len(rates)) // 2  # half-way down the cosine
    assert rates[middle] == pytest.approx((recipe['lr'] + recipe['last']) / 2, rel=0.01)


def last_drop_path(cfg: Config) -> float:
    """Stochastic depth rate of the last block, which the backbone has in fact."""
    with torch.device('meta'):
        backbone = MODELS.build(cfg.model.backbone)
    return backbone.stages[-1].blocks[-1].drop_path.p


@pytest.mark.parametrize(
    ('name', 'lr', 'decay', 'steps', 'drop_paths'),
    [
        ('retinanet_soft-norm', 1e-4, 1e-4, (8, 11, 12), dict(tiny=0.1, large=0.1)),
        ('mask-rcnn_soft-norm', 2e-4, 1e-4, (8, 11, 12), dict(small=0.1, medium=0.1)),
        ('mask-rcnn_soft-norm', 2e-4, 1e-4, (27, 33, 36), dict(tiny=0.1)),
        (
            'retinanet_inline-pvt',
            1e-4,
            1e-4,
            (8, 11, 12),
            dict(tiny=0.1, small=0.1, medium=0.2, large=0.3),
        ),
        (
            'mask-rcnn_inline-pvt',
            2e-4,
            1e-4,
            (8, 11, 12),
            dict(tiny=0.1, small=0.2, medium=0.1, large=0.2),
        ),
        ('mask-rcnn_inline-swin', 1e-4, 0.05, (8, 11, 12), dict(tiny=0.1, small=0.1, base=0.4)),
        ('mask-rcnn_inline-swin', 1e-4, 0.05, (27, 33, 36), dict(tiny=0.1, small=0.1)),
        ('cascade-mask-rcnn_inline-swin', 1e-4, 0.05, (8, 11, 12), dict(tiny=0.1)),
        (
            'cascade-mask-rcnn_inline-swin',
            1e-4,
            0.05,
            (27, 33, 36),
            dict(tiny=0.1, small=0.1, base=0.4),
        ),
    ],
)
def test_coco(name, lr, decay, steps, drop_paths):
    first, second, last = steps
    for size, drop_path in drop_paths.items():
        (path,) = ROOT.glob(f'configs/coco/{name}-{size}_fpn_*{last // 12}x_coco.py')
        cfg = Config.fromfile(path)
        init_default_scope('mmdet')
        assert last_drop_path(cfg) == pytest.approx(drop_path)
        optimizer = build_optim_wrapper(nn.Linear(1, 1), cfg.optim_wrapper)
        assert optimizer.optimizer.defaults['betas'] == (0.9, 0.999)
        assert optimizer.optimizer.defaults['weight_decay'] == decay
        assert not optimizer.clip_grad_kwargs
        assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 16
        assert cfg.train_cfg.max_epochs == last
        iters, epochs = (dict(scheduler) for scheduler in cfg.param_scheduler)
        cfg.param_scheduler = [iters]
        rates = learning_rates(cfg, 1, 502)
        assert rates[0] == pytest.approx(1e-3 * lr)
        assert rates[500] == rates[-1] == pytest.approx(lr)
        cfg.param_scheduler = [epochs]
        assert learning_rates(cfg, last, 1) == pytest.approx(
            [lr] * first + [lr / 10] * (second - first) + [lr / 100] * (last - second)
        )


def test_cascade():
    """Three heads of four convolutions with SyncBN and one linear layer, trained with GIoU × 10."""
    cfg = Config.fromfile(ROOT / 'configs/coco/cascade-mask-rcnn_inline-swin-tiny_fpn_1x_coco.py')
    init_default_scope('mmdet')
    with torch.device('meta'):
        model = convert_sync_batchnorm(MODELS.build(cfg.model), cfg.sync_bn)
    assert [head.bbox_coder.stds[0] for head in model.roi_head.bbox_head] == [0.1, 0.05, 0.033]
    for head in model.roi_head.bbox_head:
        norms = [m for m in head.modules() if isinstance(m, _BatchNorm)]
        assert [type(norm) for norm in norms] == 4 * [nn.SyncBatchNorm]
        assert len(head.shared_fcs) == 1
        assert isinstance(head.loss_bbox, GIoULoss)
        assert head.loss_bbox.loss_weight == 10
        assert head.reg_decoded_bbox  # GIoU compares boxes
        assert not head.reg_class_agnostic
    assigners = model.train_cfg.rcnn
    assert [stage.assigner.pos_iou_thr for stage in assigners] == [0.5, 0.6, 0.7]


@pytest.mark.parametrize(
    ('name', 'lr', 'decay', 'iterations', 'warm_up', 'power', 'drop_paths'),
    [
        (
            'inline-pvt-{}_semantic-fpn',
            2e-4,
            1e-4,
            40000,
            0,
            0.9,
            dict(tiny=0.1, small=0.1, medium=0.2, large=0.1),
        ),
        (
            'inline-swin-{}_upernet',
            6e-5,
            0.01,
            160000,
            1500,
            1,
            dict(tiny=0.3, small=0.3, base=0.5),
        ),
    ],
)
def test_ade20k(name, lr, decay, iterations, warm_up, power, drop_paths):
    for size, drop_path in drop_paths.items():
        (path,) = ROOT.glob(f'configs/ade20k/{name.format(size)}_*.py')
        cfg = Config.fromfile(path)
        init_default_scope('mmseg')
        assert last_drop_path(cfg) == pytest.approx(drop_path)
        assert cfg.optim_wrapper.optimizer.weight_decay == decay
        assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 16
        assert cfg.train_cfg.max_iters == iterations
        with torch.device('meta'):
            model = convert_sync_batchnorm(MODELS.build(cfg.model), cfg.sync_bn)
        norms = [m for m in model.decode_head.modules() if isinstance(m, _BatchNorm)]
        assert {type(norm) for norm in norms} == {nn.SyncBatchNorm}
        assert model.test_cfg.mode == 'whole'
        assert cfg.test_dataloader.dataset.pipeline[1].scale == (2048, 512)
        assert cfg.test_dataloader.dataset.pipeline[1].keep_ratio
    rates = learning_rates(cfg, 1, iterations)
    assert rates[0] == pytest.approx(1e-6 * lr if warm_up else lr)
    assert rates[warm_up] == max(rates) == pytest.approx(lr, rel=1e-3)
    assert rates[(iterations + warm_up) // 2] == pytest.approx(0.5**power * lr, rel=1e-3)
    assert rates[-1] < 1e-4 * lr


def test_the_average_of_the_weights():
    """The config's hook moves the average by its momentum at each step."""
    cfg = Config.fromfile(ROOT / 'configs/imagenet/soft-tiny_8xb128-300e_in1k.py')
    init_default_scope('mmpretrain')
    (hook,) = cfg.custom_hooks
    assert hook.pop('priority') == 'ABOVE_NORMAL'  # the runner takes it from the hook's config
    settings = dict(HOOKS.build(hook).ema_cfg)
    assert settings.pop('type') == 'ExponentialMovingAverage'
    model = nn.Linear(1, 1)
    average, before = ExponentialMovingAverage(model, **settings), model.weight.item()
    average.update_parameters(model)
    with torch.no_grad():
        model.weight += 1
    average.update_parameters(model)
    assert average.module.weight.item() == pytest.approx(before + 4e-5, abs=1e-6)


@pytest.mark.parametrize(
    ('option', 'dtype', 'scaled'),
    [(['--amp'], torch.bfloat16, False), (['--amp', 'float16'], torch.float16, True)],
)
def test_mixed_precision(train_tool, monkeypatch, option, dtype, scaled):
    """A recipe with --amp of train.py. MMEngine's wrapper is made to believe that there is a GPU."""
    config = str(ROOT / 'configs/imagenet/inline-pvt-tiny_8xb128-300e_in1k.py')
    monkeypatch.setattr(sys, 'argv', ['train.py', config, *option])
    cfg = train_tool.load_config(train_tool.parse_args())
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    made = []
    monkeypatch.setattr(
        amp_optimizer_wrapper,
        'GradScaler',
        lambda enabled=True: made.append(enabled) or torch.amp.GradScaler('cpu', enabled=enabled),
    )
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model).train()
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    assert optimizer.cast_dtype == dtype
    assert made == [scaled]
    if dtype != torch.bfloat16:  # the only dtype of MMEngine's autocast on a CPU
        return
    outputs = []
    model.backbone.stages[1].blocks[0].mlp.register_forward_hook(
        lambda module, args, out: outputs.append(out.dtype)
    )
    data = dict(
        inputs=torch.randint(0, 256, (2, 3, 64, 64)),
        data_samples=[DataSample().set_gt_label(i) for i in range(2)],
    )
    loss = model.train_step(data, optimizer)['loss']
    assert outputs == [torch.bfloat16]
    assert loss.isfinite()
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
