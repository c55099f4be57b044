"""Loading a backbone from the checkpoint of any model that contains it."""

import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torch import nn

import soft_mm
from soft_mm.fileio import load_backbone

ARCH = dict(channels=(16, 32, 48, 64), num_heads=(2, 4, 6, 8), depths=(1, 1, 1, 1))
SWIN = partial(soft_mm.InLineSwin, dict(ARCH, inline_depths=(1, 1, 0, 0)), img_size=64)
DEIT = partial(soft_mm.InLineDeiT, dict(channels=(32,), num_heads=(4,), depths=(2,)), img_size=64)


def named(state: dict, prefix: str) -> dict:
    return {f'{prefix}{name}': tensor for name, tensor in state.items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'checkpoint.pth'


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.', 'module.backbone.'])
@pytest.mark.parametrize('container', [None, 'state_dict'])
def test_loads_from_any_model(prefix, container, path):
    source, backbone = SWIN(), SWIN()
    state = named(source.state_dict(), prefix)
    if 'backbone' in prefix:
        state[prefix.replace('backbone.', 'head.weight')] = torch.ones(1)
    torch.save(state if container is None else {container: state, 'meta': {}}, path)
    load_backbone(backbone, path)
    torch.testing.assert_close(backbone.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_norms_belong_to_outputs(path):
    """A classifier has the last norm alone, a detector may leave it out."""
    classifier = SWIN(out_type='avg_featmap')
    nn.init.constant_(classifier.stages[3].norm.weight, 2)
    torch.save(classifier.state_dict(), path)
    backbone = SWIN(out_indices=(1, 3))
    load_backbone(backbone, str(path))
    assert backbone.stages[1].norm.weight.eq(1).all()
    assert backbone.stages[3].norm.weight.eq(2).all()
    backbone = SWIN(out_indices=(0, 1))
    load_backbone(backbone, path)
    torch.testing.assert_close(
        backbone.stages[3].blocks.state_dict(), classifier.stages[3].blocks.state_dict()
    )


def test_the_pyramid_belongs_to_outputs(path):
    plain, pyramid = DEIT(), DEIT(pyramid=True)
    for source, target in ((plain, pyramid), (pyramid, plain)):
        nn.init.normal_(source.stages[0].cls_token)
        torch.save(named(source.state_dict(), 'backbone.'), path)
        load_backbone(target, path)
        assert torch.equal(target.stages[0].cls_token, source.stages[0].cls_token)


def test_position_embeddings_are_resized(path):
    torch.save(DEIT(img_size=96).state_dict(), path)
    load_backbone(DEIT(), path)


def test_another_model_is_refused(path):
    state = SWIN().state_dict()
    state['stages.0.blocks.0.mlp.fc1.weight'] = torch.ones(2, 2)
    state['stages.2.extra'] = state.pop('stages.1.blocks.0.norm1.bias')
    torch.save(state, path)
    with pytest.raises(ValueError, match='is not a checkpoint of this model') as raised:
        load_backbone(SWIN(), path)
    for words in (str(path), 'Missing key', 'stages.1.blocks.0.norm1.bias', 'Unexpected key'):
        assert words in str(raised.value)
    assert 'size mismatch for stages.0.blocks.0.mlp.fc1.weight' in str(raised.value)


class Code:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.folder,)


def test_unusable_files_are_refused(path, tmp_path):
    with pytest.raises(FileNotFoundError, match='checkpoint.pth'):
        load_backbone(SWIN(), path)
    path.write_text('weights')
    with pytest.raises(ValueError, match='checkpoint.pth is not a checkpoint'):
        load_backbone(SWIN(), path)
    torch.save(dict(state_dict=3), path)
    with pytest.raises(ValueError, match='checkpoint.pth has no state dict under state_dict'):
        load_backbone(SWIN(), path)
    mark = tmp_path / 'mark'
    torch.save(dict(state_dict=SWIN().state_dict(), more=Code(str(mark))), path)
    with pytest.raises(ValueError, match='mkdir, which could run code .*trust_pickle=True'):
        load_backbone(SWIN(), path)
    assert not mark.exists()
    load_backbone(SWIN(), path, trust_pickle=True)
    assert mark.exists()


class Server(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


def test_downloads_once(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    sources = SWIN(), SWIN()
    for name, source in zip('ab', sources):
        (tmp_path / name).mkdir()
        torch.save(source.state_dict(), tmp_path / name / 'last.pth')
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Server, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/{{}}/last.pth'
        loaded = SWIN(), SWIN()
        for name, backbone in zip('ab', loaded):
            load_backbone(backbone, url.format(name))
        with pytest.raises(OSError, match='/none/last.pth cannot be downloaded: .*404'):
            load_backbone(SWIN(), url.format('none'))
        server.shutdown()
    load_backbone(SWIN(), url.format('a'))  # from the copy, as the server is gone
    for source, backbone in zip(sources, loaded):
        torch.testing.assert_close(backbone.state_dict(), source.state_dict(), rtol=0, atol=0)
    assert len(list((tmp_path / 'cache/hub/checkpoints').iterdir())) == 2
