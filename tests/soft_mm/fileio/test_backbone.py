"""Loading a backbone from the checkpoint of any model that contains it."""

import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from mmengine.model import PretrainedInit
from torch import nn

import soft_mm
from soft_mm.fileio import load_backbone
from soft_mm.fileio.backbone import adapt_filters
from soft_mm.models.backbones import Backbone

ARCH = dict(channels=(16, 32, 48, 64), num_heads=(2, 4, 6, 8), depths=(1, 1, 1, 1))
SWIN = partial(soft_mm.InLineSwin, dict(ARCH, inline_depths=(1, 1, 0, 0)), img_size=64)
DEIT = partial(soft_mm.InLineDeiT, dict(channels=(32,), num_heads=(4,), depths=(2,)), img_size=64)
FAMILIES = {
    'SOFT': partial(soft_mm.SOFT, dict(ARCH, kernel_sizes=(9, 5, 3)), sym_norm=True, img_size=64),
    'InLineDeiT': DEIT,
    'InLinePVT': partial(soft_mm.InLinePVT, dict(ARCH, mlp_ratios=(2, 2, 2, 2)), img_size=64),
    'InLineSwin': SWIN,
    'InLineCSwin': partial(soft_mm.InLineCSwin, ARCH, img_size=64),
}


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


@pytest.mark.parametrize('in_channels', [1, 2, 3, 4, 6])
def test_adapted_filters_respond_to_equal_channels_as_before(in_channels):
    filters = torch.randn(5, 3, 7, 7, dtype=torch.float64)
    adapted = adapt_filters(filters, in_channels)
    assert adapted.shape == (5, in_channels, 7, 7)
    torch.testing.assert_close(adapted.sum(1), filters.sum(1))
    copies = [adapted[:, i] for i in range(in_channels)]
    expected = {
        1: [filters.sum(1)],
        2: [filters.sum(1) / 2] * 2,
        3: list(filters.unbind(1)),
        4: [filters[:, 0] / 2, filters[:, 1], filters[:, 2], filters[:, 0] / 2],
        6: [*(filters / 2).unbind(1)] * 2,
    }
    torch.testing.assert_close(copies, expected[in_channels])


@pytest.mark.parametrize(('in_channels', 'word'), [(1, 'averaged'), (4, 'repeated')])
@pytest.mark.parametrize('family', FAMILIES)
def test_another_number_of_input_channels(family, in_channels, word, path, logged):
    """The response to an image of equal channels stays the same, and the log says it once."""
    source, backbone = FAMILIES[family](), FAMILIES[family](in_channels=in_channels)
    torch.save(source.state_dict(), path)
    load_backbone(backbone.double(), path)
    (message,) = logged
    assert message == (
        f'{path} has 3 input channels, this model in_channels={in_channels}: the filters of the '
        f'stem are {word}'
    )
    image = torch.randn(1, 1, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected = source.double().eval()(image.expand(-1, 3, -1, -1))
        maps = backbone.eval()(image.expand(-1, in_channels, -1, -1))
    torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_another_dtype_is_converted(dtype, path):
    """Also where position embeddings are resized, which PyTorch does not do in every dtype."""
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in DEIT().state_dict().items()}
    torch.save(state, path)
    backbone, same = DEIT(img_size=96), DEIT(img_size=96)
    load_backbone(backbone, path)
    same.load_state_dict({k: v.to(same.state_dict()[k]) for k, v in state.items()})
    torch.testing.assert_close(backbone.state_dict(), same.state_dict(), rtol=0, atol=0)


def test_integers_are_not_weights(path):
    name = 'stages.0.patch_embed.proj.weight'
    torch.save(dict(DEIT().state_dict(), **{name: torch.ones(32, 3, 16, 16).to(torch.int8)}), path)
    with pytest.raises(ValueError, match=f'{name} must be of a floating-point dtype, .*torch.int8'):
        load_backbone(DEIT(), path)


def test_a_stem_of_another_model_is_refused(path):
    """Its filters are not adapted if they differ in more than the number of channels."""
    name = 'stages.0.patch_embed.proj.weight'
    for shape in (32, 4, 8, 8), (32, 0, 16, 16), (32, 4):
        torch.save(dict(DEIT().state_dict(), **{name: torch.ones(shape)}), path)
        with pytest.raises(ValueError, match=f'size mismatch for {name}'):
            load_backbone(DEIT(), path)


def initialised(path: str, **options) -> Backbone:
    """A backbone with weights from ``init_cfg``."""
    cfg = dict(type='Pretrained', checkpoint=str(path), **options)
    backbone = SWIN(in_channels=4, img_size=96, init_cfg=cfg)
    backbone.init_weights()
    return backbone


@pytest.mark.parametrize('prefix', [None, 'backbone', 'backbone.'])
def test_init_cfg_loads_as_load_backbone(prefix, path, logged):
    """The head of the classifier is left out without a warning."""
    classifier = named(SWIN(out_type='avg_featmap').state_dict(), 'backbone.')
    torch.save(dict(state_dict=dict(classifier, **{'head.fc.weight': torch.ones(9, 64)})), path)
    backbone, expected = initialised(path, prefix=prefix), SWIN(in_channels=4, img_size=96)
    text = '\n'.join(logged)
    assert text.count('stem') == 1
    assert f'init_cfg.checkpoint={path} has 3 input channels, this model in_channels=4' in text
    assert 'head' not in text
    load_backbone(expected, path)
    torch.testing.assert_close(backbone.state_dict(), expected.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize('kind', ['Pretrained', PretrainedInit])
def test_pretrained_weights_come_last(kind, path):
    source = SWIN()
    torch.save(source.state_dict(), path)
    cfg = [
        dict(type=kind, checkpoint=str(path)),
        dict(type='Constant', layer='Linear', val=0.5),
    ]
    backbone = SWIN(init_cfg=cfg)
    backbone.init_weights()
    torch.testing.assert_close(backbone.state_dict(), source.state_dict(), rtol=0, atol=0)
    assert [entry['type'] for entry in cfg] == [kind, 'Constant']


@pytest.mark.parametrize(
    'init_cfg', ['checkpoint.pth', 3, dict(checkpoint='x.pth'), ['Pretrained']]
)
def test_invalid_init_cfg(init_cfg):
    with pytest.raises(
        ValueError, match='init_cfg must be None, a dict with a type or a list of such'
    ):
        SWIN(init_cfg=init_cfg)


def test_init_cfg_names_what_is_wrong(path):
    with pytest.raises(
        FileNotFoundError, match=f'init_cfg.checkpoint={path} can not be found: it must'
    ):
        initialised(path)
    torch.save(DEIT().state_dict(), path)
    with pytest.raises(
        ValueError,
        match=rf"init_cfg.checkpoint={path} has no weights .* prefix='backbone.'; they .*\['stages'\]",
    ):
        initialised(path, prefix='backbone.')
    with pytest.raises(ValueError, match=f'init_cfg.checkpoint={path} is not a checkpoint of this'):
        initialised(path)
    torch.save([1], path)
    with pytest.raises(ValueError, match=f'init_cfg.checkpoint={path} holds a list, not a dict'):
        initialised(path)


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
