"""mmpretrain's self-supervised wrappers train our backbones on several views of each image."""

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

STAGES = dict(channels=(16, 16, 32, 32), num_heads=(1, 1, 2, 2), depths=(1, 1, 1, 1))
BACKBONES = {
    'SOFT': dict(arch=dict(STAGES, kernel_sizes=(9, 5, 3)), sym_norm=True),
    'InLinePVT': dict(arch=dict(STAGES, mlp_ratios=(2, 2, 2, 2))),
}
NECK = dict(
    type='NonLinearNeck', in_channels=32, hid_channels=32, out_channels=16, with_avg_pool=True
)
# Each wrapper with the sides of the views: MoCo and BYOL also have an averaged copy of the backbone,
# and SwAV concatenates the views of a size.
WRAPPERS = {
    'MoCo': (
        dict(
            neck=NECK,
            head=dict(type='ContrastiveHead', loss=dict(type='CrossEntropyLoss')),
            queue_len=8,
            feat_dim=16,
        ),
        (64, 64),
    ),
    'BYOL': (
        dict(
            neck=NECK,
            head=dict(
                type='LatentPredictHead',
                loss=dict(type='CosineSimilarityLoss'),
                predictor=dict(NECK, in_channels=16, with_avg_pool=False),
            ),
        ),
        (64, 64),
    ),
    'SwAV': (
        dict(
            neck=dict(type='SwAVNeck', in_channels=32, hid_channels=32, out_channels=16),
            head=dict(
                type='SwAVHead',
                loss=dict(type='SwAVLoss', feat_dim=16, num_crops=[2, 3], num_prototypes=8),
            ),
        ),
        (64, 64, 32, 32, 32),
    ),
}


@pytest.mark.parametrize('wrapper', WRAPPERS)
@pytest.mark.parametrize('backbone', BACKBONES)
def test_a_wrapper_trains(backbone, wrapper):
    init_default_scope('mmpretrain')
    MessageHub.get_current_instance().update_info('max_iters', 2)  # as a runner does
    torch.manual_seed(0)
    options, sides = WRAPPERS[wrapper]
    parts = dict(BACKBONES[backbone], type=f'soft_mm.{backbone}', img_size=64, out_indices=3)
    cfg = dict(options, type=wrapper, backbone=parts)
    model = revert_sync_batchnorm(MODELS.build(cfg)).train()
    before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    optimizer = build_optim_wrapper(model, dict(optimizer=dict(type='SGD', lr=0.1)))
    views = [torch.randn(4, 3, side, side) for side in sides]
    for _ in range(2):
        losses = model.train_step(dict(inputs=views, data_samples=None), optimizer)
        assert losses['loss'].isfinite()
    assert all(not torch.equal(p, before[name]) for name, p in model.backbone.named_parameters())
