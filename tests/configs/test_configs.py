"""Every config builds with its toolbox and has as many parameters as the papers' tables say."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    str(path.relative_to(ROOT / 'configs')) for path in (ROOT / 'configs').glob('[!_]*/*.py')
)
# Millions of parameters, of ImageNet's models by the authors' code, of others by the papers' tables.
PARAMS = {
    **{
        f'imagenet/{model}-{size}-300e_in1k.py': count
        for model in ('soft', 'soft-norm')
        for size, count in (
            ('tiny_8xb128', 13.07),
            ('small_8xb128', 24.11),
            ('medium_8xb32', 45.81),
            ('large_8xb32', 64.70),
            ('huge_8xb32', 87.11),
        )
    },
    'imagenet/soft-norm-huge_fsdp_8xb32-300e_in1k.py': 87.11,
    'imagenet/inline-deit-tiny_8xb512-300e_in1k.py': 6.48,
    'imagenet/inline-deit-small_8xb128-300e_in1k-288px.py': 16.73,
    'imagenet/inline-deit-base_8xb64-300e_in1k-448px.py': 23.80,
    'imagenet/inline-pvt-tiny_8xb128-300e_in1k.py': 12.03,
    'imagenet/inline-pvt-small_8xb128-300e_in1k.py': 21.56,
    'imagenet/inline-pvt-medium_8xb128-300e_in1k.py': 37.62,
    'imagenet/inline-pvt-large_8xb64-300e_in1k.py': 51.15,
    'imagenet/inline-swin-tiny_8xb128-300e_in1k.py': 29.22,
    'imagenet/inline-swin-small_8xb128-300e_in1k.py': 49.79,
    'imagenet/inline-swin-base_8xb64-300e_in1k.py': 88.35,
    'imagenet/inline-cswin-tiny_8xb128-300e_in1k.py': 20.61,
    'imagenet/inline-cswin-small_8xb128-300e_in1k.py': 33.03,
    'imagenet/inline-cswin-base_8xb64-300e_in1k.py': 73.41,
    **{
        f'coco/{detector}_soft-norm-{size}_fpn_1x_coco.py': count
        for detector, counts in (('retinanet', (23, 34, 55, 74)), ('mask-rcnn', (33, 44, 65, 84)))
        for size, count in zip(('tiny', 'small', 'medium', 'large'), counts)
    },
    'ade20k/soft-norm-small_upernet_8xb2-160k_ade20k-512x512.py': 54,
    'ade20k/soft-norm-medium_upernet_8xb2-160k_ade20k-512x512.py': 76,
    **{
        f'imagenet/soft-tiny_{kind}-landmarks_8xb128-300e_in1k.py': 12.96
        for kind in ('avg-pool', 'random', 'biased')
    },
}
FUNCTIONS = ('relu', 'leaky-relu', 'affine-relu')
# The papers give no number of parameters for these, or only one that is rounded to millions.
OTHERS = [
    *(f'imagenet/soft-tiny_{number}-landmarks_8xb128-300e_in1k.py' for number in (36, 64, 81)),
    *(
        name.format(attention)
        for name in (
            'imagenet/soft-tiny_{}_8xb128-300e_in1k.py',
            'coco/mask-rcnn_soft-tiny_{}_fpn_1x_coco.py',
            'ade20k/soft-tiny_{}_upernet_8xb2-160k_ade20k-512x512.py',
        )
        for attention in ('softmax', 'linformer', 'performer', 'nystromformer')
    ),
    *(
        f'imagenet/inline-{name}_in1k-384px.py'
        for name in ('swin-base_8xb64-30e', 'cswin-base_8xb64-20e')
    ),
    *(
        f'coco/{detector}_inline-pvt-{size}_fpn_1x_coco.py'
        for detector in ('retinanet', 'mask-rcnn')
        for size in ('tiny', 'small', 'medium', 'large')
    ),
    *(
        f'coco/mask-rcnn_soft-norm-{size}_fpn_ms-3x_coco.py'
        for size in ('tiny', 'small', 'medium', 'large')
    ),
    *(
        f'imagenet/inline-swin-tiny_{ablation}_8xb128-300e_in1k.py'
        for ablation in (
            *(f'{function}-division' for function in ('identity', *FUNCTIONS)),
            *FUNCTIONS,
            'no-conv',
            *(f'window-{size}{conv}' for size in (7, 14, 28) for conv in ('', '-no-conv')),
        )
    ),
    *(
        f'coco/{detector}_inline-swin-{size}_fpn_{schedule}_coco.py'
        for detector, schedule, sizes in (
            ('mask-rcnn', '1x', ('tiny', 'small', 'base')),
            ('mask-rcnn', '3x', ('tiny', 'small')),
            ('cascade-mask-rcnn', '1x', ('tiny',)),
            ('cascade-mask-rcnn', '3x', ('tiny', 'small', 'base')),
        )
        for size in sizes
    ),
    *(
        f'ade20k/inline-pvt-{size}_{head}_ade20k-512x512.py'
        for head in ('semantic-fpn_8xb2-40k', 'upernet_8xb2-160k')
        for size in ('tiny', 'small', 'medium', 'large')
    ),
    *(
        f'ade20k/inline-swin-{size}_upernet_8xb2-160k_ade20k-512x512.py'
        for size in ('tiny', 'small', 'base')
    ),
    *(f'ade20k/soft-norm-{size}_upernet_8xb2-160k_ade20k-512x512.py' for size in ('tiny', 'large')),
]


@pytest.fixture(params=CONFIGS)
def config(request) -> tuple[str, Config]:
    return request.param, Config.fromfile(ROOT / 'configs' / request.param)


def build(cfg: Config):
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    if hasattr(model, 'auxiliary_head'):  # it is for training only, and the tables do not count it
        del model.auxiliary_head
    return model


@pytest.mark.parametrize('name', PARAMS)
def test_parameters(name):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    count = sum(p.numel() for p in build(cfg).parameters()) / 1e6
    assert count == pytest.approx(PARAMS[name], rel=0.02)


def test_norms_biases_and_positions_do_not_decay(config):
    """All other parameters decay, in the backbone and in the heads."""
    _, cfg = config
    model = build(cfg)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decays = {
        id(p): group['weight_decay'] for group in optimizer.param_groups for p in group['params']
    }
    norms = {
        id(p)
        for module in model.modules()
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm, _BatchNorm))
        for p in module.parameters()
    }
    for name, p in model.named_parameters():
        exempt = (
            id(p) in norms
            or name.endswith('bias')
            or any(part in name for part in ('pos_embed', 'cls_token', 'position_bias'))
        )
        assert decays[id(p)] == (0 if exempt else cfg.optim_wrapper.optimizer.weight_decay), name


def test_every_config_is_checked():
    assert {*PARAMS, *OTHERS} == {name for name in CONFIGS if not name.startswith('demo/')}
