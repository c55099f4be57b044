import json

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

COUNTS = {'train': 12, 'val': 6}
SIZE = 96


@pytest.fixture(scope='module')
def run(run_tool):
    """Run the tool for a folder; the options replace those of the small set that the tests share."""

    def run(out_dir, **options):
        options = {**COUNTS, 'size': SIZE, **options}
        words = [word for name, value in options.items() for word in (f'--{name}', value)]
        return run_tool('misc/make_shapes.py', out_dir, *words, check=False)

    return run


def contents(folder):
    """Relative path -> pixels (for images) or bytes (for all other files)."""
    return {
        str(path.relative_to(folder)): cv2.imread(str(path)).tobytes()
        if path.suffix == '.png'
        else path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


@pytest.fixture(scope='module')
def shapes(run, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp('made') / 'deep' / 'shapes'
    result = run(out_dir)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 1
    assert str(out_dir) in result.stdout
    return out_dir


def test_layout(shapes):
    expected = {'meta.json'}
    for split, count in COUNTS.items():
        expected |= {f'annotations/instances_{split}.json'}
        expected |= {f'{split}/{index:06d}.png' for index in range(count)}
    assert set(contents(shapes)) == expected
    assert list(shapes.parent.iterdir()) == [shapes]  # no temporary folder is left
    assert json.loads((shapes / 'meta.json').read_text()) == {**COUNTS, 'size': SIZE, 'seed': 0}


@pytest.mark.parametrize('split', COUNTS)
def test_annotations(shapes, split):
    coco = COCO(str(shapes / 'annotations' / f'instances_{split}.json'))
    assert [(c['id'], c['name']) for c in coco.loadCats(coco.getCatIds())] == [
        (1, 'circle'),
        (2, 'square'),
        (3, 'triangle'),
        (4, 'star'),
    ]
    assert {ann['category_id'] for ann in coco.anns.values()} == {1, 2, 3, 4}
    assert 0 not in coco.anns
    assert len(coco.imgs) == COUNTS[split]
    for image_id, info in coco.imgs.items():
        image = cv2.imread(str(shapes / split / info['file_name']))
        assert image.shape == (info['height'], info['width'], 3) == (SIZE, SIZE, 3)
        anns = coco.imgToAnns[image_id]
        assert 1 <= len(anns) <= 5
        masks = [coco.annToMask(ann) for ann in anns]
        assert np.sum(masks, axis=0).max() == 1  # visible parts do not overlap
        for ann, mask in zip(anns, masks, strict=True):
            assert isinstance(ann['segmentation']['counts'], str)
            assert ann['iscrowd'] == 0
            assert ann['area'] == mask.sum() > 0
            ys, xs = np.nonzero(mask)
            x, y, w, h = ann['bbox']
            assert [x, y, w, h] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert x >= 0 and y >= 0 and x + w <= SIZE and y + h <= SIZE
            assert max(w, h) <= SIZE / 2 + 1  # outer radius at most a quarter of the side
            # The pixels below a mask are those of its texture: two colours, no blended edge.
            assert len(np.unique(image[mask.astype(bool)], axis=0)) <= 2


def test_same_seed_same_set(run, shapes, tmp_path):
    assert run(tmp_path / 'again').returncode == 0
    assert contents(tmp_path / 'again') == contents(shapes)


def test_other_seed_other_set(run, shapes, tmp_path):
    assert run(tmp_path / 'other', seed=1).returncode == 0
    first, other = contents(shapes), contents(tmp_path / 'other')
    assert set(first) == set(other)
    assert all(first[name] != other[name] for name in first)


def test_images_all_differ(shapes):
    pixels = [data for name, data in contents(shapes).items() if name.endswith('.png')]
    assert len(set(pixels)) == len(pixels) == sum(COUNTS.values())


def test_no_val_images(run, tmp_path):
    assert run(tmp_path / 'shapes', val=0).returncode == 0
    coco = COCO(str(tmp_path / 'shapes' / 'annotations' / 'instances_val.json'))
    assert not coco.imgs and not coco.anns and len(coco.cats) == 4


def test_hard(run_tool, shapes, tmp_path):
    """Stars are twins where the image has more than one, and shapes are smaller and more."""
    words = tmp_path / 'hard', '--train', 60, '--val', 0, '--hard'
    run_tool('misc/make_shapes.py', *words)
    assert 'Reused' in run_tool('misc/make_shapes.py', *words).stdout
    assert (
        '--hard True (now False)'
        in run_tool('misc/make_shapes.py', *words[:-1], check=False).stderr
    )
    coco = COCO(str(tmp_path / 'hard' / 'annotations' / 'instances_train.json'))
    assert [c['name'] for c in coco.loadCats([4, 5])] == ['star', 'twin']
    stars = [
        [ann['category_id'] for ann in coco.imgToAnns[i] if ann['category_id'] >= 4]
        for i in coco.imgs
    ]
    assert all(labels == [4] or set(labels) == {5} for labels in stars if labels)
    assert any(len(labels) == 1 for labels in stars) and any(len(labels) > 1 for labels in stars)
    assert max(len(anns) for anns in coco.imgToAnns.values()) > 4
    # Radii of at most a ninth of the side of 128 pixels, and of the pixels that the outline covers.
    assert max(max(ann['bbox'][2:]) for ann in coco.anns.values()) <= 2 * (128 // 9) + 2


def test_reuse(run, shapes):
    before = contents(shapes)
    result = run(shapes)
    assert result.returncode == 0, result.stderr
    assert 'Reused' in result.stdout and str(shapes) in result.stdout
    assert contents(shapes) == before


@pytest.mark.parametrize('name, value', [('train', 13), ('val', 5), ('size', 128), ('seed', 1)])
def test_other_arguments_are_refused(run, shapes, name, value):
    before = contents(shapes)
    result = run(shapes, **{name: value})
    assert result.returncode != 0
    assert str(shapes) in result.stderr and 'remove' in result.stderr
    assert f'--{name}' in result.stderr and str(value) in result.stderr
    assert all(f'--{other}' not in result.stderr for other in {*COUNTS, 'size', 'seed'} - {name})
    assert contents(shapes) == before


@pytest.mark.parametrize('meta', [None, '', '[1]', '3'])
def test_foreign_folder_is_refused(run, tmp_path, meta):
    (tmp_path / 'notes.txt').write_text('mine')
    if meta is not None:
        (tmp_path / 'meta.json').write_text(meta)
    before = contents(tmp_path)
    result = run(tmp_path)
    assert result.returncode != 0
    assert str(tmp_path) in result.stderr and 'meta.json' in result.stderr
    assert 'Traceback' not in result.stderr
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    'name, value, allowed',
    [
        ('size', 63, '>= 64'),
        ('size', 'big', '>= 64'),
        ('train', 0, '>= 1'),
        ('train', -1, '>= 1'),
        ('val', -1, '>= 0'),
        ('seed', -1, '>= 0'),
    ],
)
def test_bad_arguments(run, tmp_path, name, value, allowed):
    result = run(tmp_path / 'shapes', **{name: value})
    assert result.returncode == 2
    message = result.stderr.splitlines()[-1]
    assert f'--{name}' in message and repr(str(value)) in message and allowed in message
    assert not list(tmp_path.iterdir())
