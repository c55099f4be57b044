"""Converted checkpoints of known weights give the outputs of the authors' code."""

import argparse
import json
import os
import pickle
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from torch import Tensor, nn

import soft_mm

ROOT = Path(__file__).parents[2]
SOFT_TO_MM, INLINE_TO_MM = (f'model_converters/{name}_to_mm.py' for name in ('soft', 'inline'))
# For each golden file: the converter, the ImageNet config and the arch.
GOLDEN = {
    'soft-tiny_2x224x224': (SOFT_TO_MM, 'soft-tiny_8xb128-300e_in1k', 'tiny'),
    'soft-small_1x224x224': (SOFT_TO_MM, 'soft-small_8xb128-300e_in1k', 'small'),
    'soft-norm-tiny_2x224x224': (SOFT_TO_MM, 'soft-norm-tiny_8xb128-300e_in1k', 'tiny'),
    'soft-norm-small_1x224x224': (SOFT_TO_MM, 'soft-norm-small_8xb128-300e_in1k', 'small'),
    'inline-deit-t_1x224x224': (INLINE_TO_MM, 'inline-deit-tiny_8xb512-300e_in1k', 'tiny'),
    'inline-pvt-t_1x224x224': (INLINE_TO_MM, 'inline-pvt-tiny_8xb128-300e_in1k', 'tiny'),
    'inline-swin-t_1x224x224': (INLINE_TO_MM, 'inline-swin-tiny_8xb128-300e_in1k', 'tiny'),
    'inline-cswin-t_1x224x224': (INLINE_TO_MM, 'inline-cswin-tiny_8xb128-300e_in1k', 'tiny'),
}


@pytest.fixture(scope='module')
def states(authors_state) -> dict[str, dict[str, Tensor]]:
    """A complete state dict of each kind of model, with the authors' names."""
    return {name.split('_')[0]: authors_state(name) for name in GOLDEN if 'small' not in name}


def classifier(config: str, arch: str) -> nn.Module:
    """Build the model of an ImageNet config."""
    cfg = Config.fromfile(ROOT / f'configs/imagenet/{config}.py')
    cfg.model.backbone.arch = arch
    init_default_scope('mmpretrain')
    return MODELS.build(cfg.model).eval()


def relative_error(ours: Tensor, theirs: np.ndarray) -> float:
    return np.abs(ours.numpy() - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize('name', GOLDEN)
def test_parity(golden, fill, authors_state, run_tool, tmp_path, name):
    converter, config, arch = GOLDEN[name]
    container = 'state_dict' if name.startswith('soft') else 'model'
    torch.save(
        {container: authors_state(name), 'args': argparse.Namespace(epochs=300)},
        tmp_path / 'theirs.pth',
    )
    run_tool(converter, tmp_path / 'theirs.pth', tmp_path / 'ours.pth')
    checkpoint = torch.load(tmp_path / 'ours.pth', weights_only=True)
    assert checkpoint['meta']['arch'] == arch

    model = classifier(config, arch)
    model.load_state_dict(checkpoint['state_dict'], strict=True)
    # The last block of each of the four stages, or blocks 3, 6, 9 and 12 of DeiT's one stage.
    blocks = [stage.blocks[-1] for stage in model.backbone.stages]
    if len(blocks) == 1:
        blocks = model.backbone.stages[0].blocks[2::3]
    tokens = []
    for block in blocks:
        block.register_forward_hook(lambda block, args, out: tokens.append(out))
    shape = json.loads((golden / f'{name}.json').read_text())['input']
    with torch.no_grad():
        logits = model(fill.image(name, shape))
    theirs = np.load(golden / f'{name}.npz')
    for i, stage in enumerate(tokens, 1):
        values = stage.flatten()[::61][:20000]
        assert relative_error(values, theirs[f'stage{i}']) < 1e-4
    assert len(tokens) == 4
    assert relative_error(logits, theirs['logits']) < 1e-4


@pytest.mark.parametrize('name', [name for name in GOLDEN if 'small' not in name])
def test_from_checkpoint_to_table(authors_state, real_images, run_tool, tables, tmp_path, name):
    """Run the commands of the converters' README up to the table of accuracies, on two classes."""
    _, config, _ = GOLDEN[name]
    (row,) = (
        line
        for line in (ROOT / 'tools/model_converters/README.md').read_text().splitlines()
        if f'/{config}.py)' in line
    )
    script, theirs, ours = re.search('`python tools/(.*?)`', row)[1].split()
    (tmp_path / 'checkpoints').mkdir()
    torch.save({'state_dict': authors_state(name)}, tmp_path / theirs)
    run_tool(script, tmp_path / theirs, tmp_path / ours)
    config = f'configs/imagenet/{config}.py'
    run_tool(
        'test.py',
        config,
        tmp_path / ours,
        '--work-dir',
        tmp_path / 'work',
        '--out',
        tmp_path / 'metrics.json',
        '--cfg-options',
        *real_images(Config.fromfile(ROOT / config)),
    )
    result = json.loads((tmp_path / 'metrics.json').read_text())
    accuracy = result['metrics']['accuracy/top1']
    assert 0 <= accuracy <= 100
    (row,) = (
        line
        for line in tables.conversions({result['config']: result['metrics']})
        if f'checkpoints/{Path(ours).name}`' in line
    )
    assert row.endswith(f'| {accuracy:.1f} |')


def test_prefix_averaged_weights_and_other_depths(states, run_tool, tmp_path):
    """A checkpoint as the authors' training writes it, with depths that are not a named arch's."""
    tiny = states['soft-norm-tiny']
    state = {f'module.{key}': t for key, t in tiny.items() if 'block3.2' not in key}
    average = {key: t + 1 for key, t in state.items()}
    torch.save(dict(state_dict=state, state_dict_ema=average), tmp_path / 'theirs.pth')
    for options, added in (([], 0), (['--ema'], 1)):
        run_tool(SOFT_TO_MM, tmp_path / 'theirs.pth', tmp_path / 'ours.pth', *options)
        checkpoint = torch.load(tmp_path / 'ours.pth', weights_only=True)
        assert checkpoint['meta']['arch']['depths'] == (1, 2, 2, 2)
        assert torch.equal(checkpoint['state_dict']['head.fc.bias'], tiny['head.bias'] + added)


def test_sizes_are_read_from_the_tables(states, run_tool, tmp_path):
    """A Swin for 384×384 images and windows of 12, with the buffers that the converter drops."""
    state = {
        key: torch.randn(23 * 23, t.shape[1]) if key.endswith('bias_table') else t
        for key, t in states['inline-swin-t'].items()
    }
    state['layers.2.blocks.1.attn_mask'] = torch.zeros(4, 144, 144)
    torch.save(dict(model=state), tmp_path / 'theirs.pth')
    run_tool(INLINE_TO_MM, tmp_path / 'theirs.pth', tmp_path / 'ours.pth')
    checkpoint = torch.load(tmp_path / 'ours.pth', weights_only=True)
    meta = checkpoint['meta']
    assert (meta['img_size'], meta['window_size']) == (384, 12)
    model = soft_mm.InLineSwin(meta['arch'], img_size=384, window_size=12, out_type='avg_featmap')
    model.load_state_dict(
        {
            key.removeprefix('backbone.'): t
            for key, t in checkpoint['state_dict'].items()
            if not key.startswith('head')
        },
        strict=True,
    )


def test_settings_are_no_danger(states, run_tool, tmp_path, monkeypatch):
    """InLine's checkpoints hold yacs nodes, and yacs need not be installed to read them."""
    module = types.ModuleType('yacs.config')
    module.CfgNode = type('CfgNode', (dict,), {'__module__': 'yacs.config'})
    monkeypatch.setitem(sys.modules, 'yacs', types.ModuleType('yacs'))
    monkeypatch.setitem(sys.modules, 'yacs.config', module)
    settings = module.CfgNode(MODEL=module.CfgNode(TYPE='inline_pvt'), EPOCHS=300)
    settings.__dict__['frozen'] = True
    torch.save(
        dict(model=states['inline-pvt-t'], config=settings, epoch=299), tmp_path / 'theirs.pth'
    )
    run_tool(INLINE_TO_MM, tmp_path / 'theirs.pth', tmp_path / 'ours.pth', fresh=True)
    assert (tmp_path / 'ours.pth').exists()


def changed(state: dict, **changes) -> dict:
    """Copy the state dict with some entries replaced, or removed if the new value is None."""
    state = {**state, **{key.replace('/', '.'): t for key, t in changes.items()}}
    return {key: t for key, t in state.items() if t is not None}


class Code:
    def __reduce__(self):
        return os.mkdir, (os.environ['MARK'],)


def case(kind: str, message: str, **changes):
    """Return a kind of checkpoint, a function that changes its entries, and the expected message."""
    return kind, lambda state: changed(state, **changes), message


BAD = {
    'unknown key': case('soft-norm-tiny', 'unknown key backbone.extra', extra=torch.ones(1)),
    'missing key': case(
        'soft-norm-tiny',
        'missing key backbone.stages.1.blocks.1.attn.v.bias',
        **{'block2/1/att/mha/W_v/bias': None},
    ),
    'missing half of a pair': case(
        'soft-norm-tiny',
        'wrong shape of backbone.stages.3.blocks.0.attn.qkv.bias',
        **{'block4/0/attn/kv/bias': None},
    ),
    'wrong shape': case(
        'soft-norm-tiny',
        'wrong shape of backbone.stages.3.norm.weight: (7,), not (512,)',
        **{'norm/weight': torch.ones(7)},
    ),
    'table of no square': case(
        'soft-norm-tiny', '783 positions do not form a square', pos_embed2=torch.ones(1, 783, 128)
    ),
    'table of one dimension': case(
        'soft-norm-tiny', 'wrong shape of pos_embed1: (64,), not 3-D', pos_embed1=torch.ones(64)
    ),
    'no tensors': ('soft-norm-tiny', lambda state: dict(epoch=3), 'has no state dict'),
    'another model': (
        'soft-norm-tiny',
        lambda state: {'conv1.weight': torch.ones(64, 3, 7, 7)},
        'has no pos_embed1: it is a checkpoint of another model',
    ),
    'InLine: another model': (
        'inline-pvt-t',
        lambda state: {'conv1.weight': torch.ones(64, 3, 7, 7)},
        'it is not an InLine checkpoint',
    ),
    'InLine: unknown key': case(
        'inline-cswin-t',
        'unknown key backbone.stages.2.blocks.0.attn.filters.0.weight',
        **{'stage3/0/attns/0/residual/0/weight': torch.ones(256, 32, 1)},
    ),
    'InLine: missing key': case(
        'inline-swin-t',
        'missing key backbone.stages.2.patch_embed.reduction.weight',
        **{'layers/1/downsample/reduction/weight': None},
    ),
    'InLine: missing half of a pair': case(
        'inline-pvt-t',
        'wrong shape of backbone.stages.1.blocks.1.attn.qkv.weight',
        **{'block2/1/attn/kv/weight': None},
    ),
    'InLine: missing stage': case(
        'inline-pvt-t',
        'has no backbone.stages.3.blocks.0.norm1.weight',
        **{'block4/0/norm1/weight': None},
    ),
    'InLine: wrong shape': case(
        'inline-swin-t',
        'wrong shape of head.fc.weight: (1000, 7), not (1000, 768)',
        **{'head/weight': torch.ones(1000, 7)},
    ),
    'InLine: table of no square': case(
        'inline-deit-t', '195 positions do not form a square', pos_embed=torch.ones(1, 196, 192)
    ),
    'InLine: windows of no square': case(
        'inline-swin-t',
        '168 positions do not form a square',
        **{'layers/3/blocks/1/attn/relative_position_bias_table': torch.ones(168, 24)},
    ),
    'InLine: filters of no heads': case(
        'inline-pvt-t',
        'wrong shape of backbone.stages.0.blocks.0.attn.filters.0.weight',
        **{'block1/0/attn/residual/0/weight': torch.ones(64)},
    ),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_state_dict(states, run_tool, tmp_path, name):
    kind, change, message = BAD[name]
    torch.save(dict(state_dict=change(states[kind])), tmp_path / 'theirs.pth')
    fails(
        run_tool,
        tmp_path,
        message,
        converter=INLINE_TO_MM if kind.startswith('inline') else SOFT_TO_MM,
    )


def write_code(path: Path) -> None:
    torch.save(dict(state_dict={}, args=Code()), path)


FILES = {
    'text': (lambda path: path.write_text('not a checkpoint'), 'is not a checkpoint'),
    'empty': (lambda path: path.touch(), 'is not a checkpoint'),
    'cut off': (
        lambda path: (
            torch.save(dict(state_dict=dict(a=torch.ones(99))), path),
            path.write_bytes(path.read_bytes()[:400]),
        ),
        'is not a checkpoint',
    ),
    'a list': (lambda path: torch.save([1, 2], path), 'holds a list, not a dict'),
    'absent': (lambda path: None, 'No such file'),
    'a folder': (lambda path: path.mkdir(), 'Is a directory'),
}


@pytest.mark.parametrize('case', FILES)
def test_no_checkpoint(run_tool, tmp_path, case):
    write, message = FILES[case]
    write(tmp_path / 'theirs.pth')
    fails(run_tool, tmp_path, message)


def fails(run_tool, folder: Path, message: str, *options, converter: str = SOFT_TO_MM) -> None:
    before = set(folder.iterdir())
    done = run_tool(converter, folder / 'theirs.pth', folder / 'ours.pth', *options, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert 'Traceback' not in done.stderr
    assert set(folder.iterdir()) == before


@pytest.mark.parametrize(
    'pickled', [write_code, lambda path: path.write_bytes(pickle.dumps(Code(), protocol=2))]
)
def test_code_is_not_run_unless_trusted(run_tool, tmp_path, monkeypatch, pickled):
    mark = tmp_path.with_name(tmp_path.name + '-mark')
    monkeypatch.setenv('MARK', str(mark))
    pickled(tmp_path / 'theirs.pth')
    fails(run_tool, tmp_path, 'posix.mkdir')
    assert not mark.exists()


def test_trusted_code_is_run(run_tool, tmp_path, monkeypatch):
    mark = tmp_path.with_name(tmp_path.name + '-mark')
    monkeypatch.setenv('MARK', str(mark))
    write_code(tmp_path / 'theirs.pth')
    fails(run_tool, tmp_path, 'has no pos_embed1', '--trust-pickle')
    assert mark.exists()


def test_the_source_is_never_the_target(states, run_tool, tmp_path):
    path = tmp_path / 'theirs.pth'
    torch.save(dict(state_dict=states['soft-norm-tiny']), path)
    before = path.read_bytes()
    done = run_tool(SOFT_TO_MM, path, path, check=False)
    assert done.returncode == 1
    assert 'is the source' in done.stderr
    assert path.read_bytes() == before
