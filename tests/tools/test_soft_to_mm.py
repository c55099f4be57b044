"""Checkpoints with the authors' names, filled with known weights, give the authors' outputs."""

import argparse
import importlib.util
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
CONVERTER = 'model_converters/soft_to_mm.py'


def load_fill(golden: Path):
    spec = importlib.util.spec_from_file_location('fill', golden / 'fill.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def authors_state(golden: Path, name: str) -> dict[str, Tensor]:
    shapes = json.loads((golden / f'{name}.json').read_text())['state_dict']
    return {key: load_fill(golden).fill(key, shape) for key, shape in shapes.items()}


@pytest.fixture(scope='module')
def tiny(golden) -> dict[str, Tensor]:
    return authors_state(golden, 'soft-norm-tiny_2x224x224')


def classifier(norm: bool, arch: str) -> nn.Module:
    """The ImageNet config's model."""
    config = ROOT / f'configs/imagenet/soft-{"norm-" if norm else ""}tiny_8xb128-300e_in1k.py'
    cfg = Config.fromfile(config)
    cfg.model.backbone.arch = arch
    init_default_scope('mmpretrain')
    return MODELS.build(cfg.model).eval()


def relative_error(ours: Tensor, theirs: np.ndarray) -> float:
    return np.abs(ours.numpy() - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize('name', ['soft-tiny_2x224x224', 'soft-norm-tiny_2x224x224',
                                  'soft-small_1x224x224', 'soft-norm-small_1x224x224'])
def test_parity(golden, run_tool, tmp_path, name):
    torch.save(dict(state_dict=authors_state(golden, name), args=argparse.Namespace(epochs=300)),
               tmp_path / 'theirs.pth')
    run_tool(CONVERTER, tmp_path / 'theirs.pth', tmp_path / 'ours.pth')
    checkpoint = torch.load(tmp_path / 'ours.pth', weights_only=True)
    arch = name.split('_')[0].split('-')[-1]
    assert checkpoint['meta']['arch'] == arch

    model = classifier('norm' in name, arch)
    model.load_state_dict(checkpoint['state_dict'], strict=True)
    tokens = []
    for stage in model.backbone.stages:
        stage.blocks[-1].register_forward_hook(lambda block, args, out: tokens.append(out))
    shape = json.loads((golden / f'{name}.json').read_text())['input']
    with torch.no_grad():
        logits = model(load_fill(golden).image(name, shape))
    theirs = np.load(golden / f'{name}.npz')
    for i, stage in enumerate(tokens, 1):
        values = stage.flatten()[::61][:20000]
        assert relative_error(values, theirs[f'stage{i}']) < 1e-4
    assert relative_error(logits, theirs['logits']) < 1e-4


def test_prefix_averaged_weights_and_other_depths(tiny, run_tool, tmp_path):
    """What a training run of the authors' leaves, for an arch of depths that no name has."""
    state = {f'module.{key}': t for key, t in tiny.items() if 'block3.2' not in key}
    average = {key: t + 1 for key, t in state.items()}
    torch.save(dict(state_dict=state, state_dict_ema=average), tmp_path / 'theirs.pth')
    for options, added in (([], 0), (['--ema'], 1)):
        run_tool(CONVERTER, tmp_path / 'theirs.pth', tmp_path / 'ours.pth', *options)
        checkpoint = torch.load(tmp_path / 'ours.pth', weights_only=True)
        assert checkpoint['meta']['arch']['depths'] == (1, 2, 2, 2)
        assert torch.equal(checkpoint['state_dict']['head.fc.bias'], tiny['head.bias'] + added)


def changed(state: dict, **changes) -> dict:
    """A copy of the state dict with some entries replaced, or removed where they are None."""
    state = {**state, **{key.replace('/', '.'): t for key, t in changes.items()}}
    return {key: t for key, t in state.items() if t is not None}


class Code:
    def __reduce__(self):
        return os.mkdir, (os.environ['MARK'], )


BAD = {
    'unknown key': (lambda s: changed(s, extra=torch.ones(1)), 'unknown key backbone.extra'),
    'missing key': (lambda s: changed(s, **{'block2/1/att/mha/W_v/bias': None}),
                    'missing key backbone.stages.1.blocks.1.attn.v.bias'),
    'missing half of a pair': (lambda s: changed(s, **{'block4/0/attn/kv/bias': None}),
                               'wrong shape of backbone.stages.3.blocks.0.attn.qkv.bias'),
    'wrong shape': (lambda s: changed(s, **{'norm/weight': torch.ones(7)}),
                    r'wrong shape of backbone.stages.3.norm.weight: (7,), not (512,)'),
    'table of no square': (lambda s: changed(s, pos_embed2=torch.ones(1, 783, 128)),
                           '783 positions are no square'),
    'table of one dimension': (lambda s: changed(s, pos_embed1=torch.ones(64)),
                               'wrong shape of pos_embed1: (64,), not 3-D'),
    'another model': (lambda s: {'conv1.weight': torch.ones(64, 3, 7, 7)},
                      'has no pos_embed1: it is a checkpoint of another model'),
    'no tensors': (lambda s: dict(epoch=3), 'has no state dict'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_state_dict(tiny, run_tool, tmp_path, case):
    change, message = BAD[case]
    torch.save(dict(state_dict=change(tiny)), tmp_path / 'theirs.pth')
    fails(run_tool, tmp_path, message)


def write_code(path: Path) -> None:
    torch.save(dict(state_dict={}, args=Code()), path)


FILES = {
    'text': (lambda path: path.write_text('not a checkpoint'), 'is no checkpoint'),
    'empty': (lambda path: path.touch(), 'is no checkpoint'),
    'cut off': (lambda path: (torch.save(dict(state_dict=dict(a=torch.ones(99))), path),
                              path.write_bytes(path.read_bytes()[:400])), 'is no checkpoint'),
    'a list': (lambda path: torch.save([1, 2], path), 'holds a list, not a dict'),
    'absent': (lambda path: None, 'No such file'),
    'a folder': (lambda path: path.mkdir(), 'Is a directory'),
}


@pytest.mark.parametrize('case', FILES)
def test_no_checkpoint(run_tool, tmp_path, case):
    write, message = FILES[case]
    write(tmp_path / 'theirs.pth')
    fails(run_tool, tmp_path, message)


def fails(run_tool, folder: Path, message: str, *options) -> None:
    before = set(folder.iterdir())
    done = run_tool(CONVERTER, folder / 'theirs.pth', folder / 'ours.pth', *options, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert 'Traceback' not in done.stderr
    assert set(folder.iterdir()) == before


@pytest.mark.parametrize('pickled', [write_code, lambda path: path.write_bytes(
    pickle.dumps(Code(), protocol=2))])
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


def test_the_source_is_never_the_target(tiny, run_tool, tmp_path):
    path = tmp_path / 'theirs.pth'
    torch.save(dict(state_dict=tiny), path)
    before = path.read_bytes()
    done = run_tool(CONVERTER, path, path, check=False)
    assert done.returncode == 1
    assert 'is the source' in done.stderr
    assert path.read_bytes() == before
