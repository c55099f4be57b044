"""Our backbones in the toolboxes' own configs, with nothing but ``--cfg-options``."""

from pathlib import Path

import mmdet
import mmpretrain
import mmseg
import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

from soft_mm.models.backbones import Backbone

# The options that a user gives for each backbone, and the channels of its four maps.
BACKBONES = {
    'SOFT': ('arch=tiny sym_norm=True', [64, 128, 320, 512]),
    'InLineDeiT': ('arch=tiny pyramid=True', [48, 96, 192, 192]),
    'InLinePVT': ('arch=tiny', [64, 128, 320, 512]),
    'InLineSwin': ('arch=tiny', [96, 192, 384, 768]),
    'InLineCSwin': ('arch=tiny', [64, 128, 256, 512]),
}


def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(256, (3, 64, 96), generator=generator).byte() for _ in range(2)]


def segmented() -> list[SegDataSample]:
    samples = [
        SegDataSample(metainfo=dict(img_shape=(64, 96), ori_shape=(64, 96))) for _ in range(2)
    ]
    for sample in samples:
        sample.gt_sem_seg = PixelData(data=torch.randint(150, (1, 64, 96)))
    return samples


# The package, its config, the other options that these channels need, and a batch.
TASKS = {
    'mmdet': (
        mmdet,
        'retinanet/retinanet_r50_fpn_1x_coco.py',
        lambda channels: [f'model.neck.in_channels={channels}'],
        lambda: demo_mm_inputs(2, [(3, 64, 96), (3, 64, 80)], num_classes=80),
    ),
    'mmseg': (
        mmseg,
        'upernet/upernet_r50_4xb4-160k_ade20k-512x512.py',
        lambda channels: [
            'model.pretrained=None',
            'model.data_preprocessor.size=(64,96)',
            f'model.decode_head.in_channels={channels}',
            f'model.auxiliary_head.in_channels={channels[2]}',
        ],
        lambda: dict(inputs=images(), data_samples=segmented()),
    ),
    'mmpretrain': (
        mmpretrain,
        'resnet/resnet50_8xb32_in1k.py',
        lambda channels: ['model.backbone.out_indices=3', f'model.head.in_channels={channels[3]}'],
        lambda: dict(
            inputs=images(), data_samples=[DataSample().set_gt_label(i) for i in range(2)]
        ),
    ),
}


@pytest.mark.parametrize('family', BACKBONES)
@pytest.mark.parametrize('task', TASKS)
def test_backbone_swap(task, family, parse_options):
    package, config, other_options, batch = TASKS[task]
    arguments, channels = BACKBONES[family]
    cfg = Config.fromfile(Path(package.__file__).parent / '.mim/configs' / config)
    cfg.merge_from_dict(
        parse_options(
            [
                'model.backbone._delete_=True',
                f'model.backbone.type=soft_mm.{family}',
                *(f'model.backbone.{argument}' for argument in arguments.split()),
                *(option.replace(' ', '') for option in other_options(channels)),
            ]
        )
    )

    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
    assert isinstance(model.backbone, Backbone)
    data = model.data_preprocessor(batch(), training=True)
    losses, _ = model.parse_losses(model(**data, mode='loss'))
    losses.backward()
    assert losses.isfinite()
    used = [name for name, p in model.backbone.named_parameters() if p.grad is not None]
    # The others belong to maps that are not used.
    assert len(used) > 0.8 * len(list(model.backbone.parameters()))
