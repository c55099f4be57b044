"""The checks of COCO annotation files take any file: it loads, or they say what is wrong with it."""

import copy
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mmengine.registry import DefaultScope
from mmengine.utils import import_modules_from_strings

from soft_mm.registry import DATASETS

from .damage import damaged

HEIGHT, WIDTH = 6, 8
RLE = dict(size=[HEIGHT, WIDTH], counts=[8, 4, 36])
FILE = dict(
    images=[dict(id=i, file_name=f'{i}.png', height=HEIGHT, width=WIDTH) for i in range(2)],
    categories=[dict(id=1, name='cat'), dict(id=5, name='dog')],
    annotations=[
        dict(id=i, image_id=i // 2, category_id=1 + i % 2 * 4, bbox=[1, 1, 4, 3], area=12, **more)
        for i, more in enumerate(
            (
                dict(segmentation=[[1, 1, 5, 1, 5, 4], [1, 1.5, 2, 2, 1, 3.5]], iscrowd=0),
                dict(segmentation=RLE, iscrowd=1),
                dict(segmentation=dict(RLE, counts='84T1'), iscrowd=1),
            )
        )
    ],
)


@pytest.fixture(scope='module')
def load(without_effects, little_memory):
    """Let CocoDataset load a file and all its images, and check what it does."""
    pytest.importorskip('mmdet', reason='mmdet is not installed')
    import_modules_from_strings('mmdet.datasets')

    def run(content: bytes) -> list[dict] | None:
        with TemporaryDirectory() as folder, DefaultScope.overwrite_default_scope('mmdet'):
            for i in range(2):
                cv2.imwrite(f'{folder}/{i}.png', np.zeros((HEIGHT, WIDTH, 3), np.uint8))
            file = Path(folder, 'annotations.json')
            file.write_bytes(content)
            with little_memory(), without_effects(), redirect_stdout(io.StringIO()):
                try:
                    dataset = DATASETS.build(
                        dict(
                            type='soft_mm.CocoDataset',
                            ann_file=str(file),
                            data_prefix=dict(img=folder),
                            metainfo=dict(classes=('cat', 'dog')),
                            pipeline=[
                                dict(type='LoadImageFromFile'),
                                dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
                            ],
                        )
                    )
                    samples = [dataset[i] for i in range(len(dataset))]
                except (ValueError, OSError) as error:
                    assert folder in str(error), repr(error)
                    assert len(str(error)) < 2000
                    return None
            assert samples
            for sample in samples:
                boxes, masks = sample['gt_bboxes'].tensor, sample['gt_masks'].masks
                assert boxes.isfinite().all()
                assert masks.shape == (len(boxes), HEIGHT, WIDTH)
            return samples

    return run


@given(damaged(json.dumps(FILE).encode()))
@example(json.dumps(FILE).encode('utf-16'))
@example(b'\xef\xbb\xbf' + json.dumps(FILE).encode())
@example(b'[' * 100_000)
def test_damaged_bytes(load, content):
    load(content)


def places(value: object, prefix: tuple = ()) -> list[tuple]:
    """Paths to all values within a value, beginning with the outermost."""
    items = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    inner = [place for key, item in items for place in places(item, (*prefix, key))]
    return [prefix, *inner]


MISSING = '(missing)'
NESTED = '(lists in lists)'
DEPTHS = 10, 300, 900, 100_000
SPECIAL = st.sampled_from(
    (
        *(0, 1, -1, 5, HEIGHT, WIDTH, 1.5, 1e9, 1e300, 2**31, 2**63, 10**400),
        *(float('nan'), float('inf'), -float('inf'), True, None, MISSING),
        *('', '1', 'cat', '0.png', '../0.png', '/etc/passwd', 'a\0b', '\ud800', 'ä' * 300),
        *('84T1', '84T', '0', '~~~~', 'oooo', '8' * 99, '\x7f'),
        *(f'{NESTED} {depth}' for depth in DEPTHS),
        *([], {}, [[]], [{}], [[1, 1, 5]], [[1, 1, 5, 1, 5, 4, 1]], [[0, 0, 1e8, 0, 0, 1e8]]),
        *([4] * 12, [48], [50, -2], [1e3], dict(RLE, counts=[2**32 + 48]), dict(RLE, size='68')),
        dict(size=[10**6, 10**6], counts=[10**12]),
    )
)
VALUES = st.recursive(
    st.one_of(SPECIAL, st.integers(), st.floats(), st.text(max_size=8)),
    lambda values: st.one_of(
        st.lists(values, max_size=6), st.dictionaries(st.text(max_size=3), values, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = ('ignore', 'iscrowd', 'id', 'bbox', 'img_id')
PLACES = places(FILE)[1:] + [
    (key, i, field) for key in FILE for i in range(len(FILE[key])) for field in FIELDS
]


def changed(edits: list[tuple[tuple, object]]) -> dict:
    """The file with other values at some places. Places that no longer exist are passed over."""
    content = copy.deepcopy(FILE)
    for (*parents, last), value in edits:
        try:
            parent = content
            for key in parents:
                parent = parent[key]
            parent[last] = copy.deepcopy(value)
            if value == MISSING:
                del parent[last]
        except (KeyError, IndexError, TypeError):
            pass
    return content


@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=3))
@example([])
@example([(('images', 0), 7)])
@example([(('images', 0), 'id, file_name, width and height')])
@example([(('images', 0, 'id'), [])])
@example([(('images', 0, 'file_name'), 7)])
@example([(('images', 0, 'height'), f'{NESTED} 900')])
@example([(('categories', 0, 'name'), f'{NESTED} 900')])
@example([(('images', 0, 'file_name'), '\ud800')])
@example([(('images', i, side), 10**6) for i in range(2) for side in ('height', 'width')])
@example([(('annotations', 0, 'image_id'), {})])
@example([(('annotations', 0, 'area'), '12')])
@example([(('annotations', 0, 'bbox', 2), 10**400)])
@example([(('annotations', 0, 'bbox'), [-1e300, 1, 1.1e300, 3])])
@example([(('annotations', 0, 'bbox'), f'{NESTED} 900')])
@example([(('annotations', 0, 'segmentation'), [[0, 0, 1e8, 0, 0, 1e8]])])
@example([(('annotations', 0, 'segmentation'), [[0, 0, 10**400, 0, 0, 1]])])
@example([(('annotations', 0, 'segmentation'), f'{NESTED} 900')])
@example([(('annotations', 1, 'segmentation', 'size'), 6)])
@example([(('annotations', 1, 'segmentation', 'counts'), [8, '4', 36])])
@example([(('annotations', 1, 'segmentation', 'counts'), [8, -4, 44])])
@example([(('annotations', 1, 'segmentation', 'counts'), {})])
@example([(('annotations', 2, 'segmentation', 'counts'), '84T')])
@example([(('annotations', 2, 'segmentation', 'counts'), '84T\x7f')])
@example([(('annotations', 2, 'segmentation', 'counts'), '84')])
def test_other_values(load, edits):
    text = json.dumps(changed(edits))
    for depth in DEPTHS:  # json.dumps does not write that many itself
        text = text.replace(f'"{NESTED} {depth}"', '[' * depth + ']' * depth)
    load(text.encode())


@pytest.mark.parametrize('share', [0, 0.1, 0.5, 0.9, 1])
def test_compressed_masks_are_taken(load, share):
    """Whatever pycocotools encodes is loaded as the same mask."""
    encode = pytest.importorskip('pycocotools.mask', reason='pycocotools is not installed').encode
    mask = np.random.default_rng(0).random((HEIGHT, WIDTH)) < share
    counts = encode(np.asfortranarray(mask.astype(np.uint8)))['counts'].decode()
    edits = [(('annotations', i, 'segmentation'), dict(RLE, counts=counts)) for i in range(3)]
    samples = load(json.dumps(changed(edits)).encode())
    np.testing.assert_array_equal(samples[1]['gt_masks'].masks, [mask])
