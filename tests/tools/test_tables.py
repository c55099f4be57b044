"""Counts of multiply-adds, and the tables that compare our models with the papers'."""

import copy
import functools
from pathlib import Path

import pytest
import torch
from mmengine.fileio import load
from torch import nn

from soft_mm.analysis.flops import count_executed, count_multiply_adds
from soft_mm.models.layers import InLineAttention, SelfAttention, SOFTAttention
from soft_mm.ops import set_backend
from soft_mm.ops.gaussian_product import tiled

ROOT = Path(__file__).parents[2]


class OnMap(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x, (6, 9))


B, N, C, H = 2, 54, 8, 2
D = C // H


def test_soft_attention_counts_as_its_formula():
    """A 6×9 map has landmarks on a 3×4 grid, so that m = 12 in each of the two heads."""
    m = 12
    counts = count_multiply_adds(OnMap(SOFTAttention(C, H, 2, 3)), torch.randn(B, N, C))
    assert counts['linear'] == 3 * B * N * C * C
    assert counts['conv'] == B * H * m * D * 4 * D + B * D * N * H * 9
    assert counts['gaussian_kernel'] == B * H * (N + m) * m * D
    assert counts['newton_inverse'] == B * H * 20 * 2 * m**3
    assert counts['matmul'] == B * H * (2 * N + m) * m * D


def test_inline_attention_counts_as_its_formula():
    counts = count_multiply_adds(OnMap(InLineAttention(C, H)), torch.randn(B, N, C))
    assert counts['linear'] == 4 * B * N * C * C
    assert counts['conv'] == B * N * C * 9 + B * C * D + B * 9 * C * D
    assert counts['matmul'] == B * H * (2 * N + 1) * D * D


@pytest.mark.parametrize(
    ('layer', 'saved'),
    [
        (InLineAttention(C, H), B * ((2 * N + 1) * C * D - C * C * (C + 2 * D))),
        (SelfAttention(C, H), 0),
    ],
)
def test_what_is_executed(layer, saved):
    """PyTorch's own counter agrees, less what is saved where queries and keys are not computed."""
    x = torch.randn(B, N, C)
    counts = count_multiply_adds(OnMap(layer), x)
    executed = count_executed(OnMap(layer), x)
    with set_backend('reference'):
        assert counts == count_multiply_adds(OnMap(layer), x)
        counts.pop('layer_norm', 0)
        assert count_executed(OnMap(layer), x) == sum(counts.values())
    assert executed == sum(counts.values()) - saved


@pytest.mark.parametrize('solver', ['newton', 'ridge'])
def test_every_way_of_soft_counts_as_the_papers(solver, monkeypatch):
    """The backends count alike. With 169 landmarks the rational function and tiles are used, so that
    the multiply-adds that are executed differ."""
    monkeypatch.setitem(tiled.TILE, 'cpu', 1)
    hw, x = (26, 26), torch.randn(1, 676, C)
    layer = SOFTAttention(C, H, 2, 3, solver=solver)
    layer.forward = functools.partial(layer.forward, hw=hw)
    counted, executed = [], []
    for backend in 'torch', 'reference':
        with set_backend(backend):
            counted.append(count_multiply_adds(layer, x))
            executed.append(count_executed(layer, x))
    assert counted[0] == counted[1]
    counted[1].pop('layer_norm')
    assert executed[1] == sum(counted[1].values())
    m = 169
    k1 = H * 676 * m * (D + 4)  # computed a second time, from tokens that are two channels wider
    fast = H * m**3 * 19 // 24 + H * m * m * (18 - 1) * D - 20 * 2 * H * m**3
    assert executed[0] - executed[1] == k1 + (fast if solver == 'newton' else 0)


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
    rows['inline-cswin-tiny_8xb128-300e_in1k']['params'] = 20.6  # listed, but agrees
    monkeypatch.setattr(tables, 'papers', lambda: changed)
    monkeypatch.setattr(tables, 'FOLDERS', ('imagenet',))
    assert [line.split(':')[0] for line in tables.differences()] == [
        'inline-deit-tiny_8xb512-300e_in1k',
        'inline-pvt-tiny_8xb128-300e_in1k',
        'inline-cswin-tiny_8xb128-300e_in1k',
    ]


def test_pages_are_up_to_date(tables):
    """If not, run tools/analysis_tools/tables.py --write."""
    pages = dict(tables.pages({}))
    assert len(pages) == 5
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
    config = 'mask-rcnn_soft-norm-tiny_fpn_1x_coco'
    metrics = {'coco/bbox_mAP': 0.4129, 'coco/segm_mAP': 0.3871}
    row = {
        line.split('](')[0]: line.split('|')[-5:]
        for line in tables.table('coco', {f'configs/coco/{config}.py': metrics})
    }
    assert row['| [mask-rcnn, soft-norm-tiny'] == [' 41.2 ', ' 41.3 ', ' 38.2 ', ' 38.7 ', '']
    assert row['| [mask-rcnn, soft-norm-small'] == [' 43.8 ', ' – ', ' 40.1 ', ' – ', '']
