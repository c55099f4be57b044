"""Every config trains a step on real images, predicts, and reloads what it saved."""

import shutil
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
CONFIGS = sorted(str(path.relative_to(ROOT / 'configs'))
                 for folder in ('imagenet', 'coco', 'ade20k')
                 for path in (ROOT / 'configs' / folder).glob('*.py'))
LOADERS = ('train', 'val', 'test')
SMALL = 128  # pixels: the side of dense prediction's images here


def images_of_imagenet(cfg: Config, shared, folder: Path) -> list[str]:
    """The photographs of COCO and ADE20K as the first two classes of ImageNet's folders."""
    for split in ('train', 'val'):
        for i, source in enumerate((shared('data') / 'coco/val2017',
                                    shared('data') / 'ade20k/images/validation')):
            (folder / split / f'class{i}').mkdir(parents=True)
            for image in source.glob('*.jpg'):
                shutil.copy(image, folder / split / f'class{i}')
    return [f'{loader}_dataloader.dataset.{option}' for loader in LOADERS
            for option in (f'data_root={folder}', 'metainfo.classes=[class0,class1]')]


def images_of_coco(cfg: Config, shared, folder: Path) -> list[str]:
    source = shared('data') / 'coco'
    several = 'scales' in cfg.train_dataloader.dataset.pipeline[2]
    return [
        *(f'{loader}_dataloader.dataset.data_root={source}/' for loader in LOADERS),
        'train_dataloader.dataset.ann_file=annotations/instances_val2017.json',
        'train_dataloader.dataset.data_prefix.img=val2017/',
        'train_dataloader.dataset.pipeline.2.' + (
            f'scales=[({SMALL},{SMALL})]' if several else f'scale=({SMALL},{SMALL})'),
        f'val_dataloader.dataset.pipeline.1.scale=({SMALL},{SMALL})',
    ]


def images_of_ade20k(cfg: Config, shared, folder: Path) -> list[str]:
    source = shared('data') / 'ade20k'
    return [
        *(f'{loader}_dataloader.dataset.data_root={source}' for loader in LOADERS),
        'train_dataloader.dataset.data_prefix.img_path=images/validation',
        'train_dataloader.dataset.data_prefix.seg_map_path=annotations/validation',
        f'model.data_preprocessor.size=({SMALL},{SMALL})',
        f'train_dataloader.dataset.pipeline.2.scale=({4 * SMALL},{SMALL})',
        f'train_dataloader.dataset.pipeline.3.crop_size=({SMALL},{SMALL})',
        f'val_dataloader.dataset.pipeline.1.scale=({4 * SMALL},{SMALL})',
    ]


IMAGES = {'imagenet': images_of_imagenet, 'coco': images_of_coco, 'ade20k': images_of_ade20k}


def tensors(prediction: BaseDataElement) -> list[Tensor]:
    """All that a prediction holds, in a fixed order."""
    found = []
    for _, value in sorted(prediction.items()):
        if isinstance(value, BaseDataElement):
            found += tensors(value)
        elif isinstance(value, Tensor):
            found.append(value)
    return found


def build(cfg: Config) -> nn.Module:
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.backbone.init_cfg = None  # the pretrained checkpoint is not here
    model.init_weights()
    return model


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[] if 'tiny' in name else pytest.mark.long) for name in CONFIGS])
def test_every_config(name, shared, parse_options, tmp_path):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    cfg.merge_from_dict(parse_options([
        *IMAGES[name.split('/')[0]](cfg, shared, tmp_path / 'images'),
        *(f'{loader}_dataloader.{option}' for loader in LOADERS
          for option in ('num_workers=0', 'persistent_workers=False')),
        'train_dataloader.batch_size=2', 'val_dataloader.batch_size=1',
    ]))
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
