"""Every config builds through its toolbox, with the parameters of the papers' tables."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(str(path.relative_to(ROOT / 'configs'))
                 for path in (ROOT / 'configs').glob('[!_]*/*.py'))
# Millions of parameters: measured with the authors' code (ImageNet), the papers' tables (others).
PARAMS = {
    'imagenet/soft-tiny_8xb128-300e_in1k.py': 13.07,
    'imagenet/soft-norm-tiny_8xb128-300e_in1k.py': 13.07,
    'coco/retinanet_soft-norm-tiny_fpn_1x_coco.py': 23,
    'coco/mask-rcnn_soft-norm-tiny_fpn_1x_coco.py': 33,
    'ade20k/soft-norm-small_upernet_8xb2-160k_ade20k-512x512.py': 54,
}


@pytest.fixture(params=CONFIGS)
def config(request) -> tuple[str, Config]:
    return request.param, Config.fromfile(ROOT / 'configs' / request.param)


def build(cfg: Config):
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    if hasattr(model, 'auxiliary_head'):  # trains, but is not in what the tables count
        del model.auxiliary_head
    return model


@pytest.mark.parametrize('name', PARAMS)
def test_parameters(name):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    count = sum(p.numel() for p in build(cfg).parameters()) / 1e6
    assert count == pytest.approx(PARAMS[name], rel=0.02)


def test_norms_biases_and_positions_do_not_decay(config):
    _, cfg = config
    model = build(cfg)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decays = {id(p): group['weight_decay'] for group in optimizer.param_groups
              for p in group['params']}
    names = {name: decays[id(p)] for name, p in model.backbone.named_parameters()}
    assert names['stages.0.blocks.0.attn.q.weight'] > 0
    for name, decay in names.items():
        if any(part in name for part in ('norm', 'pos_embed', 'cls_token')):
            assert decay == 0, name


def test_every_config_is_checked():
    assert set(PARAMS) == {name for name in CONFIGS if not name.startswith('demo/')}
