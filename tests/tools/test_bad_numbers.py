"""NaN and infinity are caught, and ordinary training produces none, in mixed precision too."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

DEMO = 'configs/demo/retinanet_soft-norm-tiny_fpn_shapes.py'
LAYER = 'backbone.stages.1.blocks.0.mlp'
LANDMARKS = 'backbone.stages.1.blocks.0.attn.landmarks'
# Puts a forward hook on a layer for the third step only.
THIRD_STEP = """
from mmengine.model import BaseModel
steps, hooks, train_step = [], [], BaseModel.train_step
def spoilt(self, *args, **kwargs):
    steps.append(1)
    if len(steps) == 3:
        hooks.append(self.get_submodule('{}').register_forward_hook({}))
    if len(steps) == 4:
        hooks.pop().remove()
    return train_step(self, *args, **kwargs)
BaseModel.train_step = spoilt
"""
NAN, INF = (f"lambda layer, args, output: output * float('{value}')" for value in ('nan', 'inf'))
INF_GRADIENT = """lambda layer, args, output: (
    output.requires_grad and output.register_hook(lambda g: g * float('inf')), output)[1]"""
# MMEngine supports mixed precision on GPUs only; this lets it run on a CPU.
AMP_ON_CPU = """
import functools
import mmengine.runner.amp, torch
from mmengine.optim.optimizer import amp_optimizer_wrapper
amp_optimizer_wrapper.is_cuda_available = lambda: True
amp_optimizer_wrapper.GradScaler = functools.partial(torch.amp.GradScaler, 'cpu')
mmengine.runner.amp.autocast = functools.partial(torch.autocast, 'cpu')
"""
FLOAT16 = ['--amp', 'float16']


@pytest.mark.parametrize(
    ('layer', 'event', 'amp', 'message'),
    [
        (LAYER, NAN, [], f'the output of {LAYER} is not finite'),
        (LANDMARKS, INF, [], f'the output of {LANDMARKS} is not finite'),
        ('head.loss_module', NAN, [], 'the output of head.loss_module is not finite'),
        (LAYER, INF_GRADIENT, [], f'the gradient of {LAYER}.fc2.bias is not finite'),
        (LAYER, INF_GRADIENT, ['--amp'], f'the gradient of {LAYER}.fc2.bias is not finite'),
        (LAYER, NAN, FLOAT16, f'the output of {LAYER} is not finite'),
    ],
)
def test_stops_and_names_the_layer(layer, event, amp, message, small_digits, fork_tool, tmp_path):
    config, options = small_digits
    done = fork_tool(
        'train.py',
        config,
        '--work-dir',
        tmp_path,
        *amp,
        *options,
        before=AMP_ON_CPU + THIRD_STEP.format(layer, event),
    )
    assert done.returncode == 1
    assert f'FloatingPointError: iteration 3: {message}' in done.stdout
    assert not list(tmp_path.glob('*.pth'))


@pytest.mark.parametrize(
    ('event', 'message'),
    [(NAN, f'the output of {LAYER}'), (INF_GRADIENT, f'the gradient of {LAYER}.fc2.bias')],
)
def test_skips_the_iteration(event, message, small_digits, fork_tool, tmp_path):
    """A skipped step changes neither weights nor running statistics nor the optimizer's state."""
    config, options = small_digits
    done = fork_tool(
        'train.py',
        config,
        '--work-dir',
        tmp_path,
        *options,
        'train_cfg.max_epochs=1',
        'default_hooks.bad_numbers.on_bad_numbers=skip',
        'default_hooks.checkpoint.interval=1',
        'default_hooks.checkpoint.by_epoch=False',
        'default_hooks.checkpoint.max_keep_ckpts=-1',
        before=THIRD_STEP.format(LAYER, event),
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert f'iteration 3: {message} is not finite: skipped' in done.stdout
    second, third, fourth = (
        torch.load(tmp_path / f'iter_{i}.pth', weights_only=False) for i in (2, 3, 4)
    )
    # With averaging, this entry of a checkpoint holds the weights that are trained.
    model = 'ema_state_dict'
    assert any('running_mean' in name for name in second[model])
    for name, value in second[model].items():
        if name != 'steps':
            assert value.equal(third[model][name]), name
    for i, before in second['optimizer']['state'].items():
        assert all(
            value.equal(third['optimizer']['state'][i][key]) for key, value in before.items()
        )
    weight = f'module.{LAYER}.fc1.weight'
    assert not third[model][weight].equal(fourth[model][weight])
    assert all(value.isfinite().all() for value in fourth[model].values())


def test_an_overflow_of_the_scaled_gradient_is_the_scalers(small_digits, fork_tool, tmp_path):
    config, options = small_digits
    done = fork_tool(
        'train.py',
        config,
        '--work-dir',
        tmp_path,
        *FLOAT16,
        *options,
        'train_cfg.max_epochs=1',
        before=AMP_ON_CPU + THIRD_STEP.format(LAYER, INF_GRADIENT),
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert 'is not finite' not in done.stdout
    scaler = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['optimizer']['loss_scaler']
    assert scaler['scale'] <= 2**15  # half of what it starts with


def test_bad_setting(small_digits, fork_tool, tmp_path):
    config, options = small_digits
    done = fork_tool(
        'train.py',
        config,
        '--work-dir',
        tmp_path,
        *options,
        'default_hooks.bad_numbers.on_bad_numbers=ignore',
    )
    assert done.returncode == 1
    assert "on_bad_numbers must be 'stop' or 'skip', got 'ignore'" in done.stdout


BACKBONES = {
    'SOFT': [],
    'SOFT-iteration': ['model.backbone.solver=iteration'],
    'SOFT-ridge': ['model.backbone.solver=ridge'],
    **{
        name: [
            'model.backbone._delete_=True',
            f'model.backbone.type=soft_mm.{name}',
            'model.backbone.arch=tiny',
            'model.backbone.img_size=32',
            f'model.head.in_channels={channels}',
            f'model.backbone.out_type={"cls_token" if name == "InLineDeiT" else "avg_featmap"}',
        ]
        for name, channels in (
            ('InLineDeiT', 192),
            ('InLinePVT', 512),
            ('InLineSwin', 768),
            ('InLineCSwin', 512),
        )
    },
}


MODES = [[], ['--amp'], FLOAT16]


@pytest.fixture
def train(fork_tool, tmp_path):
    """Train, and check that the loss scale, if there is one, has not collapsed."""

    def run(config: str, mode: list[str], options: list[str]) -> None:
        done = fork_tool(
            'train.py',
            config,
            '--work-dir',
            tmp_path / 'work',
            *mode,
            '--cfg-options',
            *options,
            before=AMP_ON_CPU,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        (last,) = (tmp_path / 'work').glob('[ei][pt]*_*.pth')
        scaler = torch.load(last, weights_only=False)['optimizer'].get('loss_scaler')
        assert not scaler or scaler['scale'] >= 2**8

    return run


@pytest.mark.parametrize(
    'mode', [FLOAT16, *(pytest.param(mode, marks=pytest.mark.long) for mode in MODES[:-1])]
)
@pytest.mark.parametrize('backbone', BACKBONES)
def test_black_images(backbone, mode, small_digits, train, tmp_path):
    """All tokens, and so all landmarks, are almost equal."""
    config, (_, *options) = small_digits
    for i in range(12):
        file = tmp_path / f'black/train/{i % 10}/{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(file), np.zeros((8, 8), 'uint8'))
    train(
        config,
        mode,
        [
            *options,
            *BACKBONES[backbone],
            f'train_dataloader.dataset.data_root={tmp_path}/black',
            'train_dataloader.dataset.pipeline.3.erase_prob=0.',
            'train_cfg.max_epochs=1',
        ],
    )


@pytest.mark.parametrize(
    'mode', [['--amp'], *(pytest.param(mode, marks=pytest.mark.long) for mode in ([], FLOAT16))]
)
def test_padded_batches(mode, run_tool, train, tmp_path):
    """Half of one image is padding, and the other image has none."""
    run_tool(
        'misc/make_shapes.py',
        tmp_path / 'shapes',
        '--train',
        4,
        '--val',
        4,
        '--size',
        96,
    )
    file = tmp_path / 'shapes/annotations/instances_train.json'
    annotations = json.loads(file.read_text())
    low = annotations['images'][0]
    low['height'] = 48
    picture = str(tmp_path / 'shapes/train' / low['file_name'])
    assert cv2.imwrite(picture, cv2.imread(picture)[:48])
    file.write_text(json.dumps(annotations))
    train(
        DEMO,
        mode,
        [
            f'train_dataloader.dataset.data_root={tmp_path}/shapes/',
            'train_cfg.max_epochs=2',
            'val_cfg=None',
            'val_dataloader=None',
            'val_evaluator=None',
            'train_dataloader.num_workers=0',
            'train_dataloader.persistent_workers=False',
            'default_hooks.checkpoint.interval=9',
        ],
    )


REAL = [
    'soft-norm-tiny_8xb128-300e_in1k',
    'soft-tiny_8xb128-300e_in1k',
    'inline-deit-tiny_8xb512-300e_in1k',
    'inline-pvt-tiny_8xb128-300e_in1k',
    'inline-swin-tiny_8xb128-300e_in1k',
    'inline-cswin-tiny_8xb128-300e_in1k',
]


@pytest.mark.long
@pytest.mark.parametrize('mode', MODES[1:])
@pytest.mark.parametrize('config', REAL)
def test_two_hundred_steps_on_photographs(config, mode, real_images, train):
    """Train with the recipe's augmentation and full learning rate on images of 96×96."""
    config = f'configs/imagenet/{config}.py'
    train(
        config,
        mode,
        [
            *real_images(Config.fromfile(config)),
            'train_dataloader.dataset.pipeline.1.scale=96',
            'model.backbone.img_size=96',
            'param_scheduler.0.end=2',
            'train_cfg.max_epochs=100',
            'default_hooks.checkpoint.interval=100',
            'default_hooks.checkpoint.save_best=None',
            'val_cfg=None',
            'val_dataloader=None',
            'val_evaluator=None',
        ],
    )
