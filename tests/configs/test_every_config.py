"""Every config trains a step on real images, predicts, and reloads what it saved."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, load_checkpoint, save_checkpoint
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    str(path.relative_to(ROOT / 'configs'))
    for folder in ('imagenet', 'coco', 'ade20k')
    for path in (ROOT / 'configs' / folder).glob('*.py')
)
SMALL = 128  # the side in pixels of the images for detectors and segmentors
# One size of each model; ablations, and other attentions of SOFT, are options of the same model.
SHORT = re.compile(
    r'tiny(?!_(.*relu|identity|no-conv|window|fpn_3x'
    r'|softmax|linformer|performer|nystromformer|.*landmarks))'
)


def small(cfg: Config) -> list[str]:
    """Options that make the images of detectors and segmentors small, and regions few."""
    if cfg.default_scope == 'mmdet':
        train = cfg.train_dataloader.dataset.pipeline
        if 'scale' in train[2]:
            sizes = [f'2.scale=({SMALL},{SMALL})']
        elif 'scales' in train[2]:
            sizes = [f'2.scales=[({SMALL},{SMALL})]']
        else:
            sizes = [
                f'3.transforms.{place}.scales=[({SMALL},{SMALL})]'
                for place in ('0.0', '1.0', '1.2')
            ]
        regions = []
        if 'roi_head' in cfg.model:
            stages = ['rcnn.0', 'rcnn.1', 'rcnn.2'] if 'Cascade' in cfg.model.type else ['rcnn']
            regions = [
                'model.test_cfg.rpn.max_per_img=50',
                *(f'model.train_cfg.{stage}.sampler.num=32' for stage in stages),
            ]
        return [
            *regions,
            *(f'train_dataloader.dataset.pipeline.{size}' for size in sizes),
            f'val_dataloader.dataset.pipeline.1.scale=({SMALL},{SMALL})',
        ]
    if cfg.default_scope == 'mmseg':
        return [
            f'model.data_preprocessor.size=({SMALL},{SMALL})',
            f'train_dataloader.dataset.pipeline.2.scale=({4 * SMALL},{SMALL})',
            f'train_dataloader.dataset.pipeline.3.crop_size=({SMALL},{SMALL})',
            f'val_dataloader.dataset.pipeline.1.scale=({4 * SMALL},{SMALL})',
        ]
    return []


def tensors(prediction: BaseDataElement) -> list[Tensor]:
    """All tensors of a prediction, in a fixed order."""
    found = []
    for _, value in sorted(prediction.items()):
        if isinstance(value, BaseDataElement):
            found += tensors(value)
        elif isinstance(value, Tensor):
            found.append(value)
    return found


def build(cfg: Config) -> nn.Module:
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.backbone.init_cfg = None  # the pretrained checkpoint is not available
    model.init_weights()
    return model


@pytest.mark.parametrize(
    'name',
    [pytest.param(name, marks=[] if SHORT.search(name) else pytest.mark.long) for name in CONFIGS],
)
def test_every_config(name, real_images, parse_options, tmp_path):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    cfg.merge_from_dict(parse_options([*real_images(cfg), *small(cfg)]))
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = build(cfg).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
    losses = model.train_step(batch, build_optim_wrapper(model, cfg.optim_wrapper))
    assert all(loss.isfinite() for loss in losses.values())
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())

    save_checkpoint(dict(state_dict=model.state_dict(), meta={}), str(tmp_path / 'saved.pth'))
    reloaded = build(cfg)
    load_checkpoint(reloaded, str(tmp_path / 'saved.pth'), strict=True)
    batch = next(iter(Runner.build_dataloader(cfg.val_dataloader, seed=0)))
    with torch.no_grad():
        predictions, again = (m.eval().test_step(batch) for m in (model, reloaded))
    assert predictions
    for one, other in zip(predictions, again, strict=True):
        assert all(tensor.isfinite().all() for tensor in tensors(one) if tensor.is_floating_point())
        torch.testing.assert_close(tensors(one), tensors(other))
