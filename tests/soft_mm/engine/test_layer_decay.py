"""Learning rates that decay by layer, in the models of every toolbox."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import soft_mm

CONFIGS = Path(__file__).parents[3] / 'configs'
RATE = 0.7
# How often RATE multiplies the learning rate of SOFT-Norm-Tiny's layers, which are the stem and 1 + 2
# + 3 + 2 blocks.
EXPONENTS = {
    'stages.0.patch_embed.': 9,
    'stages.0.pos_embed.': 9,
    'stages.0.blocks.0.': 8,
    'stages.1.patch_embed.': 7,
    'stages.1.pos_embed.': 7,
    'stages.1.blocks.0.': 7,
    'stages.1.blocks.1.': 6,
    'stages.2.patch_embed.': 5,
    'stages.2.pos_embed.': 5,
    'stages.2.blocks.0.': 5,
    'stages.2.blocks.1.': 4,
    'stages.2.blocks.2.': 3,
    'stages.3.patch_embed.': 2,
    'stages.3.pos_embed.': 2,
    'stages.3.cls_': 2,
    'stages.3.blocks.0.': 2,
    'stages.3.blocks.1.': 1,
    'stages.3.norm.': 0,
}


def groups(model: nn.Module, cfg: Config, **options) -> dict[str, dict]:
    """Each parameter's group in the optimizer, by name."""
    cfg = copy.deepcopy(cfg)
    cfg.merge_from_dict(dict(optim_wrapper=options))
    found = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    of = {id(parameter): group for group in found for parameter in group['params']}
    return {name: of[id(p)] for name, p in model.named_parameters() if id(p) in of}


def layer_decay(constructor: str = 'soft_mm.LayerDecayConstructor') -> dict:
    return dict(constructor=constructor, paramwise_cfg=dict(layer_decay_rate=RATE))


COCO = 'coco/retinanet_soft-norm-tiny_fpn_1x_coco.py'
ADE20K = 'ade20k/soft-norm-tiny_upernet_8xb2-160k_ade20k-512x512.py'
IMAGENET = 'imagenet/soft-norm-tiny_8xb128-300e_in1k.py'


def build(config: str, **options) -> tuple[nn.Module, Config]:
    """The model of a config, with further options of its backbone, and the config."""
    cfg = Config.fromfile(CONFIGS / config)
    pytest.importorskip(cfg.default_scope, reason=f'{cfg.default_scope} is not installed')
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        return MODELS.build({**cfg.model, 'backbone': {**cfg.model.backbone, **options}}), cfg


@pytest.mark.parametrize('frozen_stages', [-1, 2])
@pytest.mark.parametrize('config', [COCO, ADE20K, IMAGENET])
def test_rates_in_the_models_of_a_toolbox(config, frozen_stages):
    model, cfg = build(config, frozen_stages=frozen_stages)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        name
        for name, _ in model.named_parameters()
        if frozen_stages < 0 or not name.startswith(('backbone.stages.0.', 'backbone.stages.1.'))
    }
    decayed, default = groups(model, cfg, **layer_decay()), groups(model, cfg)
    assert decayed.keys() == default.keys() == trained
    lr = cfg.optim_wrapper.optimizer.lr
    for name, group in decayed.items():
        inside = name.removeprefix('backbone.')
        exponents = [0]
        if inside != name:
            exponents = [n for start, n in EXPONENTS.items() if inside.startswith(start)]
        assert [group['lr']] == pytest.approx([lr * RATE**n for n in exponents]), name
        assert group['weight_decay'] == default[name]['weight_decay']
        assert default[name]['lr'] == lr
    if cfg.default_scope == 'mmpretrain':  # which has such a constructor
        theirs = groups(model, cfg, **layer_decay('LearningRateDecayOptimWrapperConstructor'))
        for name, group in decayed.items():
            for key in 'lr', 'weight_decay':
                assert group[key] == pytest.approx(theirs[name][key]), name


@pytest.mark.parametrize('config', [COCO, ADE20K])
def test_constructors_that_know_other_backbones_alone(config):
    """Those of mmdet and mmseg find layers by the names of their own backbones."""
    model, cfg = build(config)
    options = dict(decay_rate=RATE, decay_type='layer_wise', num_layers=6)
    with pytest.raises(NotImplementedError):
        groups(
            model,
            cfg,
            constructor='LearningRateDecayOptimizerConstructor',
            paramwise_cfg=dict(_delete_=True, **options),
        )


class Model(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(1, 1)


CFG = Config(dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=1.0))))


def test_multipliers_apply_to_the_decayed_rate():
    with torch.device('meta'):
        model = Model(soft_mm.SOFT('tiny', frozen_stages=1))
    options = layer_decay()
    options['paramwise_cfg']['custom_keys'] = {
        'blocks': dict(lr_mult=10.0),
        'head': dict(lr_mult=3.0),
    }
    found = build_optim_wrapper(model, dict(CFG.optim_wrapper, **options)).optimizer.param_groups
    rates = {id(parameter): group['lr'] for group in found for parameter in group['params']}
    stages = model.backbone.stages
    assert id(stages[0].pos_embed.weight) not in rates  # frozen
    assert rates[id(stages[3].pos_embed.weight)] == pytest.approx(RATE**2)
    assert rates[id(stages[3].blocks[1].norm1.weight)] == pytest.approx(10 * RATE)
    assert rates[id(model.head.weight)] == pytest.approx(3)


@pytest.mark.parametrize(
    'options',
    [{}, *({'paramwise_cfg': {'layer_decay_rate': rate}} for rate in (None, 0, 1.5, 'fast'))],
)
def test_invalid_rate(options):
    with pytest.raises(ValueError, match=r'layer_decay_rate must be a number in \(0, 1\], got'):
        groups(nn.Linear(1, 1), CFG, constructor='soft_mm.LayerDecayConstructor', **options)


def test_a_backbone_without_depths():
    with pytest.raises(TypeError, match='get_layer_depth, got Model with Linear'):
        groups(Model(nn.Linear(1, 1)), CFG, **layer_decay())
