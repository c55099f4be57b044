"""Real images for any config."""

import shutil
from pathlib import Path

import pytest
from mmengine.config import Config

LOADERS = ('train', 'val', 'test')


@pytest.fixture
def real_images(shared, tmp_path):
    """From a config to options for batches of two of the sample images."""

    def options(cfg: Config) -> list[str]:
        return [
            *IMAGES[cfg.default_scope](shared('data'), tmp_path),
            *(f'{loader}_dataloader.{option}' for loader in LOADERS
              for option in ('num_workers=0', 'persistent_workers=False')),
            'train_dataloader.batch_size=2', 'val_dataloader.batch_size=1',
        ]

    return options


def imagenet(data: Path, folder: Path) -> list[str]:
    """The photographs of COCO and ADE20K as the first two classes of ImageNet's folders."""
    for split in ('train', 'val'):
        for i, source in enumerate(('coco/val2017', 'ade20k/images/validation')):
            target = folder / 'imagenet' / split / f'class{i}'
            target.mkdir(parents=True)
            for image in (data / source).glob('*.jpg'):
                shutil.copy(image, target)
    return [f'{loader}_dataloader.dataset.{option}' for loader in LOADERS
            for option in (f'data_root={folder}/imagenet', 'metainfo.classes=[class0,class1]')]


def coco(data: Path, folder: Path) -> list[str]:
    return [*(f'{loader}_dataloader.dataset.data_root={data}/coco/' for loader in LOADERS),
            'train_dataloader.dataset.ann_file=annotations/instances_val2017.json',
            'train_dataloader.dataset.data_prefix.img=val2017/']


def ade20k(data: Path, folder: Path) -> list[str]:
    return [*(f'{loader}_dataloader.dataset.data_root={data}/ade20k' for loader in LOADERS),
            'train_dataloader.dataset.data_prefix.img_path=images/validation',
            'train_dataloader.dataset.data_prefix.seg_map_path=annotations/validation']


IMAGES = {'mmpretrain': imagenet, 'mmdet': coco, 'mmseg': ade20k}
