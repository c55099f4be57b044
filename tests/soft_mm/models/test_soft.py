import copy

import pytest
import torch
from torch import nn

from soft_mm import SOFT

SMALL = dict(channels=(16, 32, 48, 64), num_heads=(1, 2, 3, 4), depths=(1, 1, 1, 1),
             kernel_sizes=(9, 5, 3))


def build(**kwargs) -> SOFT:
    torch.manual_seed(0)
    return SOFT(**{'arch': SMALL, 'sym_norm': True, 'img_size': 64, **kwargs})


def image(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


# REFERENCE: millions of parameters, with the head of 1000 classes.
@pytest.mark.parametrize(('arch', 'params'), [('tiny', 13.07), ('small', 24.11),
                                              ('medium', 45.81), ('large', 64.70),
                                              ('huge', 87.11)])
@pytest.mark.parametrize('sym_norm', [False, True])
def test_archs(arch, params, sym_norm):
    model = SOFT(arch, sym_norm=sym_norm).eval()
    head = nn.Linear(model.out_channels[-1], 1000)
    count = sum(p.numel() for module in (model, head) for p in module.parameters())
    assert round(count / 1e6, 2) == params
    with torch.no_grad():
        maps = model(image(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (channels, 64 // stride, 96 // stride)
        for channels, stride in zip(model.arch_zoo[arch]['channels'], (4, 8, 16, 32))]
    assert all(m.isfinite().all() for m in maps)


@pytest.mark.parametrize('size', [(64, 64), (29, 29), (97, 45), (29, 224), (130, 131)])
@pytest.mark.parametrize('sym_norm', [False, True])
def test_any_size(size, sym_norm):
    model = build(sym_norm=sym_norm)
    maps = model(image(2, 3, *size))
    for m, channels, stride in zip(maps, SMALL['channels'], (4, 8, 16, 32)):
        assert m.shape == (2, channels, *(-(-side // stride) for side in size))
    sum(m.square().mean() for m in maps).backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert not unused
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('size', [(28, 64), (64, 28), (1, 1)])
def test_too_small_for_a_landmark(size):
    with pytest.raises(ValueError, match=rf'at least 29×29.*got {size[0]}×{size[1]}'):
        build()(torch.zeros(1, 3, *size))


def test_outputs():
    x = image(2, 3, 64, 64)
    maps = build().eval()(x)
    assert build().out_channels == [16, 32, 48, 64]
    some = build(out_indices=(0, -1)).eval()
    assert some.out_channels == [16, 64]
    torch.testing.assert_close(some(x), (maps[0], maps[3]))
    (pooled, ) = build(out_type='avg_featmap').eval()(x)
    torch.testing.assert_close(pooled, maps[3].mean((2, 3)))
    (token, ) = build(out_type='cls_token').eval()(x)
    assert token.shape == (2, 64)
    with torch.no_grad():  # the class token goes through the same blocks and norm as the map
        model = build(out_type='cls_token').eval()
        model.stages[3].cls_token += 1
        assert not torch.equal(model(x)[0], token)


def test_an_image_does_not_depend_on_its_batch():
    """Not even where the iteration is far from converged: many landmarks, almost the same."""
    x = image(2, 3, 256, 256)
    x[1] *= 0.01
    model = build().eval()
    with torch.no_grad():
        alone, together = model(x[:1]), model(x)
        for a, t in zip(alone, together):
            torch.testing.assert_close(a, t[:1], rtol=1e-4, atol=1e-4)
        shared = build(alpha_scope='batch').eval()
        assert (shared(x)[0][:1] - shared(x[:1])[0]).abs().max() > 1e-3


@pytest.mark.parametrize('frozen', [-1, 0, 2, 4])
def test_frozen_stages(frozen):
    model = build(frozen_stages=frozen, drop_path_rate=0.1).train()
    for i, stage in enumerate(model.stages):
        trains = [p.requires_grad for p in stage.parameters()]
        assert all(trains) if i >= max(frozen, 1) else not any(trains) or frozen <= 0
        assert stage.training == (i >= frozen)
    first = model.stages[0].patch_embed
    assert first.training == (frozen == -1)
    assert all(p.requires_grad == (frozen == -1) for p in first.parameters())
    before = copy.deepcopy(model.state_dict())
    if frozen < 4:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.)
        sum(m.square().mean() for m in model(image(2, 3, 64, 64))).backward()
        optimizer.step()
    changed = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    fixed = ('stages.0.patch_embed', ) if frozen == 0 else tuple(
        f'stages.{i}' for i in range(max(frozen, 0)))
    assert not [name for name in changed if name.startswith(fixed)] if fixed else changed


def test_norm_eval():
    model = build(norm_eval=True).train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 6
    model(image(2, 3, 64, 64))
    assert not any(m.training or m.num_batches_tracked for m in norms)
    assert all(m.weight.requires_grad for m in norms)
    assert all(m.training for m in model.modules() if isinstance(m, nn.LayerNorm))
    free = build().train()
    free(image(2, 3, 64, 64))
    assert all(m.num_batches_tracked == 1 for m in free.modules()
               if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize('drop_path_rate', [0., 0.5])
def test_with_cp_has_the_same_values_and_gradients(drop_path_rate):
    results = []
    for with_cp in (False, True):
        model = build(with_cp=with_cp, drop_path_rate=drop_path_rate).train()
        x = image(2, 3, 64, 64).requires_grad_()
        torch.manual_seed(1)
        maps = model(x)
        sum(m.square().mean() for m in maps).backward()
        results.append((maps, [x.grad, *(p.grad for p in model.parameters())]))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_drop_path_rises_over_all_blocks():
    model = SOFT('tiny', drop_path_rate=0.14)
    rates = [block.drop.p if i < 3 else block.drop_path.p
             for i, stage in enumerate(model.stages) for block in stage.blocks]
    assert rates == pytest.approx([0.02 * i for i in range(8)])
    torch.manual_seed(0)
    x = image(2, 3, 64, 64)
    assert not torch.equal(model.train()(x)[3], model(x)[3])
    assert torch.equal(model.eval()(x)[3], model(x)[3])


def test_init_cfg_resizes_position_tables(tmp_path):
    source = build(img_size=64)
    state = {f'backbone.{name}': t for name, t in source.state_dict().items()}
    torch.save(dict(state_dict=state, meta={}), tmp_path / 'checkpoint.pth')
    model = build(img_size=(96, 160), init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'checkpoint.pth'), prefix='backbone.'))
    model.init_weights()
    for name, tensor in model.state_dict().items():
        expected = source.state_dict()[name]
        if 'pos_embed.weight' in name:
            expected = nn.functional.interpolate(expected, tensor.shape[-2:], mode='bilinear')
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)
    assert model.stages[0].pos_embed.weight.shape == (1, 16, 24, 40)
    # A table of the image's own size and one resized on the fly are the same thing.
    x = image(1, 3, 96, 160)
    torch.testing.assert_close(model.eval()(x), source.eval()(x))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    model = build().train()
    with torch.autocast('cpu', dtype):
        maps = model(image(2, 3, 64, 64))
        sum(m.float().square().mean() for m in maps).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    exact = build().train()(image(2, 3, 64, 64))
    for got, expected in zip(maps, exact):
        assert (got - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_padding_does_not_break_it():
    """A detection batch is padded with zeros, which makes many identical landmarks."""
    x = image(2, 3, 192, 192)
    x[:, :, 60:] = 0
    maps = build()(x)
    sum(m.square().mean() for m in maps).backward()
    assert all(m.isfinite().all() for m in maps)


@pytest.mark.parametrize(('kwargs', 'message'), [
    (dict(arch='giant'), r"\['tiny', 'small', 'medium', 'large', 'huge'\] or a dict, got 'giant'"),
    (dict(arch=dict(channels=(8, 8, 8, 8))), 'num_heads'),
    (dict(arch={**SMALL, 'channels': (16, 32)}), 'lengths'),
    (dict(depths=(1, 2)), 'lengths'),
    (dict(out_indices=(0, 4)), 'from -4 to 3, got 4'),
    (dict(out_type='logits'), r"\['featmap', 'avg_featmap', 'cls_token'\], got 'logits'"),
    (dict(out_type='cls_token', out_indices=(2, )), r'out_indices=\(3,\)'),
    (dict(frozen_stages=5), 'from -1 to 4, got 5'),
    (dict(alpha_scope='all'), "'matrix' or 'batch'"),
])
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)
