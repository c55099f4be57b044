"""The tables that compare our models with the papers', and the metafiles."""

import copy
from pathlib import Path

import mmdet
import mmseg
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load

from soft_mm.analysis.complexity import build_model, image_size
from soft_mm.analysis.flops import count_multiply_adds

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ('config', 'shape', 'parameters'),
    [
        ('imagenet/soft-norm-tiny_8xb128-300e_in1k.py', (), '13.07 M'),
        ('coco/mask-rcnn_inline-pvt-tiny_fpn_1x_coco.py', ('64', '96'), '31.69 M'),
        ('ade20k/inline-swin-tiny_upernet_8xb2-160k_ade20k-512x512.py', ('64', '96'), '59.95 M'),
    ],
)
def test_get_flops(run_tool, config, shape, parameters):
    shape = ('--shape', *shape) if shape else ()
    done = run_tool('analysis_tools/get_flops.py', f'configs/{config}', *shape, fresh=not shape)
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines()[1:])
    assert lines['parameters'] == parameters
    total, executed = (float(lines[name].split()[0]) for name in ('multiply-adds', 'executed'))
    # What is executed leaves out the norms and computes SOFT's K1 twice.
    assert 0.98 * total < executed < 1.02 * total


SWIN = 'swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'


@pytest.mark.parametrize(
    ('package', 'config', 'published'),
    [
        (mmdet, 'retinanet/retinanet_r50_fpn_1x_coco.py', 239),  # mmdet's documentation
        (mmdet, 'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py', 267),  # ConvNeXt (arXiv 2201.03545)
        (mmseg, f'swin/{SWIN}', 945),  # Swin (arXiv 2103.14030)
    ],
)
def test_models_of_others_count_as_published(package, config, published):
    cfg = Config.fromfile(Path(package.__file__).parent / '.mim/configs' / config)
    assert multiply_adds(cfg) == pytest.approx(published, abs=1)  # some papers round down


def test_cascade_counts_as_published():
    """Our Cascade Mask R-CNN, with Swin-T for a backbone, as in Swin's paper (arXiv 2103.14030)."""
    cfg = Config.fromfile(ROOT / 'configs/coco/cascade-mask-rcnn_inline-swin-tiny_fpn_1x_coco.py')
    swin = Path(mmdet.__file__).parent / '.mim/configs/swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'
    cfg.model.backbone = Config.fromfile(swin).model.backbone
    assert multiply_adds(cfg) == pytest.approx(745, abs=1)


def multiply_adds(cfg: Config) -> float:
    """In billions, at the image size of the papers."""
    image = torch.empty(1, 3, *image_size(cfg), device='meta')
    return count_multiply_adds(build_model(cfg).to('meta'), image).total() / 1e9


def test_bad_shape(run_tool):
    done = run_tool('analysis_tools/get_flops.py', 'x.py', '--shape', 0, 5, check=False)
    assert done.returncode == 2
    assert '--shape must be two integers of at least 1 pixel, got [0, 5]' in done.stderr


def test_every_row_has_its_config(tables):
    rows = {
        f'{folder}/{row["config"]}.py'
        for folder in tables.FOLDERS
        for row in tables.papers()[folder]
    }
    assert rows == {
        f'{path.parent.name}/{path.name}'
        for folder in tables.FOLDERS
        for path in (ROOT / 'configs' / folder).glob('*.py')
        if 'fsdp' not in path.name
    }  # the same model as another row's, trained in shards


def test_our_models_are_the_papers(tables):
    assert list(tables.differences()) == []


def test_a_difference_is_found(tables, monkeypatch):
    changed = copy.deepcopy(tables.papers())
    rows = {row['config']: row for row in changed['imagenet']}
    rows['inline-deit-tiny_8xb512-300e_in1k']['params'] *= 1.03
    rows['inline-pvt-tiny_8xb128-300e_in1k']['flops'] *= 1.1
    rows['inline-swin-tiny_8xb128-300e_in1k']['params'] = 29.2  # listed, but agrees
    monkeypatch.setattr(tables, 'papers', lambda: changed)
    monkeypatch.setattr(tables, 'FOLDERS', ('imagenet',))
    assert [line.split(':')[0] for line in tables.differences()] == [
        'inline-deit-tiny_8xb512-300e_in1k',
        'inline-pvt-tiny_8xb128-300e_in1k',
        'inline-swin-tiny_8xb128-300e_in1k',
    ]


def test_pages_are_up_to_date(tables):
    """If not, run tools/analysis_tools/tables.py --write."""
    pages = dict(tables.pages({}))
    assert len(pages) == 6
    for path, text in pages.items():
        assert '|---|' in text, path
        assert path.read_text() == text, path


def test_metafiles_are_up_to_date(metafiles):
    """If not, run tools/analysis_tools/metafiles.py --write."""
    files = dict(metafiles.files())
    assert len(files) == 4
    for path, text in files.items():
        assert path.read_text() == text, path


def test_metafiles_name_files_that_exist():
    index = load(ROOT / 'model-index.yml')
    assert len(index['Import']) == 3
    for name in index['Import']:
        metafile = load(ROOT / name)
        collections = {collection['Name'] for collection in metafile['Collections']}
        for collection in metafile['Collections']:
            assert (ROOT / collection['README']).exists()
        for model in metafile['Models']:
            assert (ROOT / model['Config']).exists()
            assert model['In Collection'] in collections


def test_only_measured_accuracies_are_ours(tables):
    config = 'mask-rcnn_soft-norm-small_fpn_1x_coco'
    metrics = {
        'coco/bbox_mAP': 0.4379,
        'coco/bbox_mAP_50': 0.6601,
        'coco/bbox_mAP_75': 0.4748,
        'coco/segm_mAP': 0.4011,
    }
    row = {
        line.split('](')[0]: line.split(' | ')[-4:]
        for line in tables.table('coco', {f'configs/coco/{config}.py': metrics})
    }
    small, tiny = (row[f'| [mask-rcnn, soft-norm-{size}, 1x'] for size in ('small', 'tiny'))
    assert small[:2] == ['43.8¹ / 66.0² / 47.5²', '43.8 / 66.0 / 47.5']
    assert small[2:] == ['40.1¹ / 63.0² / 43.0²', '40.1 / – / – |']
    assert tiny == ['41.2¹ / – / –', '–', '38.2¹ / – / –', '– |']


def test_every_source_is_named(tables):
    """A number whose source is not the paper has a mark, which is explained below the table."""
    for folder in tables.FOLDERS:
        *_, text = '\n'.join(tables.table(folder, {})).rpartition('\n|')
        for row in tables.papers()[folder]:
            for name, keys in row.get('sources', {}).items():
                mark = tables.papers()['sources'][name]['mark']
                assert f'\n{mark} ' in text
                assert {key for key in keys if key not in row} == set()
                assert all(mark in tables.paper_number(row, key) for key in keys)
            if row.get('ours'):
                assert not {*row} & {*tables.ACCURACIES}
