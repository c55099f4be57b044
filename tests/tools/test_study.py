"""The study trains, evaluates and compares its variants, on a few small images."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='session')
def study(load_module):
    return load_module(ROOT / 'tools/analysis_tools/study.py')


@pytest.fixture(scope='module')
def options(run_tool, tmp_path_factory) -> list[str]:
    """Options that train for one epoch of two steps."""
    shapes = tmp_path_factory.mktemp('data') / 'shapes'
    run_tool('misc/make_shapes.py', shapes, '--hard', '--train', 8, '--val', 12, '--size', 64)
    loaders = 'train', 'val', 'test'
    return [
        '--cfg-options',
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=1',
        'default_hooks.checkpoint.interval=1',
        'train_dataloader.batch_size=4',
        f'val_evaluator.ann_file={shapes}/annotations/instances_val.json',
        *(f'{loader}_dataloader.dataset.data_root={shapes}/' for loader in loaders),
        *(f'{loader}_dataloader.num_workers=0' for loader in loaders),
        *(f'{loader}_dataloader.persistent_workers=False' for loader in loaders),
        'train_dataloader.dataset.pipeline.2.scale=(64,64)',
        'val_dataloader.dataset.pipeline.1.scale=(64,64)',
    ]


def test_a_variant_is_trained_once(run_tool, options, tmp_path):
    work, out = tmp_path / 'work', tmp_path / 'out'
    command = 'analysis_tools/study.py', '--only', 'inline-pvt', '--work-dir', work, '--out', out
    done = run_tool(*command, *options)
    assert done.stdout == out.with_suffix('.md').read_text() + '\n'
    assert out.with_suffix('.png').stat().st_size > 5000
    (run,) = json.loads(out.with_suffix('.json').read_text())['results']
    assert (run['variant'], run['seed']) == ('inline-pvt', 0)
    assert all(0 <= run[name] <= 100 for name in ('ap', 'ap50', 'relation'))
    assert run['params'] > 1 and run['memory'] > 50
    folder = work / 'inline-pvt'
    assert (folder / 'seed-0/epoch_1.pth').exists()  # figures.py --study reads it and seed-0.py

    written = (folder / 'seed-0.json').stat().st_mtime_ns
    assert run_tool(*command, *options).stdout == done.stdout
    assert (folder / 'seed-0.json').stat().st_mtime_ns == written
    words = 'injectivity', '--images', 'docs/attention.png', '--study', work, '--out', tmp_path
    run_tool('analysis_tools/figures.py', *words)
    figure = json.loads((tmp_path / 'injectivity.json').read_text())
    assert figure['conditions'] == 'images attention.png; weights of the study'

    other = run_tool(*command, *options, 'optim_wrapper.optimizer.lr=1.0', check=False)
    assert other.returncode and 'seed-0.json is of another config' in other.stderr


def test_a_failed_training_is_no_result(run_tool, tmp_path):
    command = 'analysis_tools/study.py', '--only', 'pvt', '--work-dir', tmp_path
    done = run_tool(*command, '--cfg-options', 'runner_type=none', check=False)
    assert done.returncode and f'see {tmp_path}/pvt/seed-0/output.txt' in done.stderr
    assert not (tmp_path / 'pvt/seed-0.json').exists()


def test_mean_and_deviation(study):
    runs = [
        study.Run(variant, seed, 2.5, ap, 2 * ap, ap / 2, 3.0, 400.0)
        for seed in range(3)
        for variant, ap in (('soft', 20.0 + 2 * seed), ('pvt', 10.0))
    ]
    rows = [line.split(' | ') for line in study.table(runs).splitlines()[2:]]
    assert rows[0][:4] == ['| soft', '2.50', '22.0 ± 2.0', '44.0 ± 4.0']
    assert rows[1][:3] == ['| pvt', '2.50', '10.0 ± 0.0']
    assert '±' not in study.table(runs[:2])


def test_variants_differ_in_the_backbone_alone(study):
    base = Config.fromfile(study.CONFIG)
    assert base.model.backbone == study.VARIANTS['soft-norm']
    init_default_scope('mmdet')
    args = argparse.Namespace(cfg_options={}, work_dir=Path('work'))
    for variant in study.VARIANTS:
        cfg = study.config_of(variant, 1, args)
        backbone = MODELS.build(cfg.model.backbone)
        maps = backbone(torch.zeros(1, 3, 64, 64))
        assert [m.shape[1] for m in maps] == cfg.model.neck.pop('in_channels'), variant
        assert 1 < sum(p.numel() for p in backbone.parameters()) / 1e6 < 5, variant
        del cfg.model.backbone
        rest = Config.fromfile(study.CONFIG)
        del rest.model.backbone, rest.model.neck.in_channels
        rest.merge_from_dict(dict(randomness=dict(seed=1), work_dir=f'work/{variant}/seed-1'))
        assert cfg.to_dict() == rest.to_dict(), variant


def test_variants_of_inline_have_their_options(study):
    shared = study.VARIANTS['inline-pvt-division-no-conv']
    backbone = MODELS.build(dict(shared, depths=(1, 1, 1, 1)))
    for stage in backbone.stages:
        attention = stage.blocks[0].attn
        assert attention.normalization == 'division' and attention.filters is None
        assert isinstance(attention.kernel_function, torch.nn.ReLU)
