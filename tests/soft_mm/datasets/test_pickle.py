"""Data loaders that spawn their workers send the dataset through pickle."""

import json
import pickle

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmengine.utils import import_modules_from_strings
from PIL import Image

from soft_mm.registry import DATASETS


def coco(folder) -> dict:
    content = dict(
        images=[dict(id=0, file_name='0.png', height=40, width=50)],
        categories=[dict(id=1, name='cat')],
        annotations=[
            dict(id=1, image_id=0, category_id=1, bbox=[2, 3, 20, 20], area=400, iscrowd=0)
        ],
    )
    (folder / 'a.json').write_text(json.dumps(content))
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
    return dict(
        type='soft_mm.CocoDataset',
        data_prefix=dict(img=str(folder)),
        ann_file=str(folder / 'a.json'),
        metainfo=dict(classes=('cat',)),
        pipeline=pipeline,
    )


def ade20k(folder) -> dict:
    return dict(
        type='soft_mm.ADE20KDataset',
        img_suffix='.png',
        data_prefix=dict(img_path=str(folder), seg_map_path=str(folder)),
        pipeline=[dict(type='LoadImageFromFile')],
    )


def imagenet(folder) -> dict:
    (folder / 'a.txt').write_text('0.png 0\n')
    return dict(
        type='soft_mm.ImageNet',
        data_prefix=str(folder),
        ann_file=str(folder / 'a.txt'),
        pipeline=[dict(type='LoadImageFromFile')],
    )


@pytest.mark.parametrize(
    ('scope', 'config'), [('mmdet', coco), ('mmseg', ade20k), ('mmpretrain', imagenet)]
)
def test_a_dataset_survives_pickle(scope, config, tmp_path):
    pytest.importorskip(scope, reason=f'{scope} is not installed')
    import_modules_from_strings(f'{scope}.datasets')
    init_default_scope(scope)
    Image.fromarray(np.full((40, 50, 3), 7, np.uint8)).save(tmp_path / '0.png')
    dataset = DATASETS.build(config(tmp_path))
    copy = pickle.loads(pickle.dumps(dataset))
    assert type(copy) is type(dataset)
    assert len(copy) == len(dataset) == 1
    assert copy.metainfo == dataset.metainfo
    np.testing.assert_array_equal(copy[0]['img'], dataset[0]['img'])
    # The checks are bound to the copy.
    (tmp_path / '0.png').write_bytes(b'')
    with pytest.raises(ValueError, match='0.png must hold an image, got 0 bytes'):
        copy[0]
