"""Behaviour shared by all backbones, tested on a small model of each family."""

import copy
import re

import pytest
import torch
from torch import Tensor, nn

import soft_mm
from soft_mm.models.backbones import Backbone

STAGES = dict(channels=(16, 32, 48, 64), num_heads=(2, 4, 6, 8), depths=(1, 2, 2, 1))
SMALL = {
    'SOFT': dict(arch=dict(STAGES, kernel_sizes=(9, 5, 3)), sym_norm=True),
    'InLineDeiT': dict(arch=dict(channels=(32,), num_heads=(4,), depths=(6,))),
    'InLinePVT': dict(arch=dict(STAGES, mlp_ratios=(8, 8, 4, 4)), inline_window_size=5),
    'InLineSwin': dict(
        arch=dict(STAGES, inline_depths=(1, 1, 0, 0)), window_size=2, inline_window_size=5
    ),
    'InLineCSwin': dict(arch=STAGES, stripe_size=3),
}
STRIDES = (4, 8, 16, 32)


@pytest.fixture(params=SMALL)
def family(request) -> str:
    return request.param


def build(family: str, **kwargs) -> Backbone:
    torch.manual_seed(0)
    return getattr(soft_mm, family)(**{'img_size': 64, **SMALL[family], **kwargs})


def image(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


def strides(family: str) -> tuple[int, ...]:
    return (16,) if family == 'InLineDeiT' else STRIDES


@pytest.mark.parametrize('size', [(64, 64), (29, 29), (97, 45), (29, 224), (130, 131)])
def test_any_size(family, size):
    """Feature maps have the sizes of their strides, and every parameter has a gradient."""
    model = build(family)
    maps = model(image(2, 3, *size))
    for m, channels, stride in zip(maps, model.out_channels, strides(family), strict=True):
        assert m.shape == (2, channels, *(-(-side // stride) for side in size))
        assert m.is_contiguous()  # mmcv's RoIAlign assumes it
    sum(m.square().mean() for m in maps).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('family', [name for name in SMALL if name != 'SOFT'])
def test_one_pixel(family):
    assert all(m.shape[-2:] == (1, 1) for m in build(family)(image(1, 3, 1, 1)))


def test_in_channels_img_size_and_batch(family):
    model = build(family, in_channels=4, img_size=(96, 48)).eval()
    assert all(m.isfinite().all() for m in model(image(1, 4, 64, 64)))
    with torch.no_grad():  # an output does not depend on the rest of the batch
        x = image(2, 4, 96, 48)
        for alone, together in zip(model(x[:1]), model(x)):
            torch.testing.assert_close(alone, together[:1], rtol=1e-4, atol=1e-4)


def test_outputs(family):
    x = image(2, 3, 64, 64)
    model = build(family).eval()
    maps = model(x)
    assert model.out_channels == [m.shape[1] for m in maps]
    assert model.out_strides == [64 // m.shape[2] for m in maps]
    first_and_last = build(family, out_indices=(0, -1))
    first_and_last.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(first_and_last.eval()(x), (maps[0], maps[-1])[-len(maps) :])
    pooled = build(family, out_type='avg_featmap')
    pooled.load_state_dict(model.state_dict(), strict=False)
    assert pooled.out_channels == [maps[-1].shape[1]]
    assert pooled.out_strides == [64 // maps[-1].shape[2]]
    torch.testing.assert_close(pooled.eval()(x), (maps[-1].mean((2, 3)),))


@pytest.mark.parametrize('family', ['SOFT', 'InLineDeiT'])
def test_class_token(family):
    x = image(2, 3, 64, 64)
    model = build(family, out_type='cls_token').eval()
    (token,) = model(x)
    assert token.shape == (2, model.out_channels[-1])
    with torch.no_grad():  # class token and feature map share blocks and norm
        model.stages[-1].cls_token += 1
        assert not torch.equal(model(x)[0], token)
        maps = build(family).eval()
        before = maps(x)[-1]
        maps.stages[-1].cls_token += 1
        assert not torch.equal(maps(x)[-1], before)


def test_pyramid():
    x = image(2, 3, 97, 45)
    model = build('InLineDeiT', pyramid=True).eval()
    assert model.out_channels == [8, 16, 32, 32]
    assert model.out_strides == [4, 8, 16, 32]
    maps = model(x)
    for m, channels, stride in zip(maps, model.out_channels, STRIDES, strict=True):
        assert m.shape == (2, channels, -(-97 // stride), -(-45 // stride))
        assert m.is_contiguous()
    plain = build('InLineDeiT')
    plain.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(maps[2], plain.eval()(x)[0])
    some = build('InLineDeiT', pyramid=True, out_indices=(1, -1)).eval()
    assert some.out_channels == [16, 32]
    assert some.out_strides == [8, 32]
    assert [m.shape for m in some(x)] == [maps[1].shape, maps[3].shape]
    sum(m.sum() for m in some(x)).backward()
    assert not [name for name, p in some.named_parameters() if p.grad is None]


def test_layer_depths(family):
    """They increase from the stem over the blocks to what follows them, and no parameter is without."""
    model = build(family)
    blocks = [
        f'stages.{i}.blocks.{j}.'
        for i, stage in enumerate(model.stages)
        for j in range(len(stage.blocks))
    ]
    assert len(blocks) == 6
    depth_of_block = {name: depth for depth, name in enumerate(blocks, start=1)}
    for name, _ in model.named_parameters():
        stage, part, rest = re.fullmatch(r'stages\.(\d)\.(\w+)\.?(.*)', name).groups()
        if part == 'blocks':
            depth = depth_of_block[f'stages.{stage}.blocks.{rest.split(".")[0]}.']
        elif part == 'norm':
            depth = 7
        else:
            assert part in ('patch_embed', 'pos_embed', 'cls_token', 'cls_pos_embed')
            depth = 0 if stage == '0' else depth_of_block[f'stages.{stage}.blocks.0.']
        assert model.get_layer_depth(name) == (depth, 8), name
        assert model.get_layer_depth(f'backbone.{name}', 'backbone.') == (depth, 8)
    assert model.get_layer_depth('neck.stages.0.weight', 'backbone.') == (7, 8)


def test_the_pyramid_has_the_last_depth():
    model = build('InLineDeiT', pyramid=True)
    for name, _ in model.pyramid.named_parameters(prefix='pyramid'):
        assert model.get_layer_depth(name) == (7, 8)


@pytest.mark.parametrize('frozen', ['nothing', 'patch_embed', 'first stage', 'all'])
def test_frozen_stages(family, frozen):
    number = len(strides(family))
    frozen_stages = dict(zip(('nothing', 'patch_embed', 'first stage', 'all'), (-1, 0, 1, number)))[
        frozen
    ]
    model = build(family, frozen_stages=frozen_stages, drop_path_rate=0.1).train()
    is_frozen = {
        'nothing': lambda name: False,
        'patch_embed': lambda name: name.startswith('stages.0.patch_embed.'),
        'first stage': lambda name: name.startswith('stages.0.'),
        'all': lambda name: True,
    }[frozen]
    before = copy.deepcopy(model.state_dict())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != is_frozen(name), name
    trained = [p for p in model.parameters() if p.requires_grad]
    if trained:
        for module in (m for name, m in model.named_modules() if is_frozen(f'{name}.')):
            assert not module.training
        sum(m.square().mean() for m in model(image(2, 3, 64, 64))).backward()
        torch.optim.SGD(trained, 1.0).step()
    else:
        model(image(2, 3, 64, 64))
    changed = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert not [name for name in changed if is_frozen(name)]
    assert bool(changed) == bool(trained)


@pytest.mark.parametrize('drop_path_rate', [0.0, 0.5])
def test_with_cp_has_the_same_values_and_gradients(family, drop_path_rate):
    results = []
    for with_cp in (False, True):
        model = build(family, with_cp=with_cp, drop_path_rate=drop_path_rate).train()
        x = image(2, 3, 64, 64).requires_grad_()
        torch.manual_seed(1)
        maps = model(x)
        sum(m.square().mean() for m in maps).backward()
        results.append((maps, [x.grad, *(p.grad for p in model.parameters())]))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_drop_path_rate_increases_over_all_blocks(family):
    model = build(family, drop_path_rate=0.5)
    rates = [
        block.drop.p if hasattr(block, 'drop') else block.drop_path.p
        for stage in model.stages
        for block in stage.blocks
    ]
    assert rates == pytest.approx([0.1 * i for i in range(6)])
    torch.manual_seed(0)
    x = image(2, 3, 64, 64)
    assert not torch.equal(model.train()(x)[-1], model(x)[-1])
    assert torch.equal(model.eval()(x)[-1], model(x)[-1])


@pytest.mark.parametrize('family', ['SOFT', 'InLineDeiT', 'InLinePVT'])
def test_init_cfg_resizes_position_embeddings(family, tmp_path):
    source = build(family, img_size=64)
    state = {f'backbone.{name}': t for name, t in source.state_dict().items()}
    torch.save(dict(state_dict=state, meta={}), tmp_path / 'checkpoint.pth')
    model = build(
        family,
        img_size=(96, 160),
        init_cfg=dict(
            type='Pretrained', checkpoint=str(tmp_path / 'checkpoint.pth'), prefix='backbone.'
        ),
    )
    model.init_weights()
    for name, tensor in model.state_dict().items():
        expected = source.state_dict()[name]
        if 'pos_embed.weight' in name:
            expected = nn.functional.interpolate(expected, tensor.shape[-2:], mode='bilinear')
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)
    stride = strides(family)[0]
    assert model.stages[0].pos_embed.weight.shape[-2:] == (96 // stride, 160 // stride)
    # An embedding resized when loaded equals one resized in the forward pass.
    x = image(1, 3, 96, 160)
    torch.testing.assert_close(model.eval()(x), source.eval()(x))


def test_relative_position_bias_is_resized():
    """From window size 2 to 4, which is limited to the feature map's size, 2, in stage 4."""
    source, model = build('InLineSwin'), build('InLineSwin', window_size=4)
    names = [name for name in source.state_dict() if 'relative_position_bias' in name]
    model.load_state_dict(source.state_dict(), strict=True)
    sides = {name: model.state_dict()[name].shape[-1] for name in names}
    assert set(sides.values()) == {7, 3}  # window size 4 in stage 3, 2 in stage 4
    for name, side in sides.items():
        expected = nn.functional.interpolate(
            source.state_dict()[name], (side, side), mode='bilinear'
        )
        torch.testing.assert_close(model.state_dict()[name], expected, rtol=0, atol=0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast(family, dtype):
    model = build(family).train()
    with torch.autocast('cpu', dtype):
        maps = model(image(2, 3, 64, 64))
        sum(m.float().square().mean() for m in maps).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    exact = build(family).train()(image(2, 3, 64, 64))
    for got, expected in zip(maps, exact):
        assert (got - expected).abs().mean() < 0.05 * expected.abs().mean()


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='giant'), r'or a dict, got .giant.'),
        (dict(arch=dict(channels=(8, 8, 8, 8))), 'num_heads'),
        (dict(depths=(1, 2)), 'lengths'),
        (dict(out_indices=(0, 4)), 'out_indices must be integers from -. to ., got 4'),
        (dict(out_type='logits'), r"\['featmap', 'avg_featmap'.*\], got 'logits'"),
        (dict(frozen_stages=5), 'from -1 to ., got 5'),
    ],
)
def test_invalid_arguments(family, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(family, **kwargs)


def test_errors_list_the_archs_and_arguments(family):
    cls = getattr(soft_mm, family)
    for arch in 'giant', 3, None, ['tiny']:
        with pytest.raises(ValueError, match=re.escape(f'arch must be one of {[*cls.arch_zoo]}')):
            cls(arch)
    with pytest.raises(
        TypeError,
        match=f'{family} has no argument drop_path, window; it has '
        'arch, .*, drop_path_rate, .*init_cfg',
    ) as raised:
        cls(drop_path=0.1, window=7)
    for name in raised.value.args[0].split('it has ')[1].split(', '):
        assert f'{name} (' in f'{cls.__doc__} {Backbone.__doc__}', name


@pytest.mark.parametrize(
    ('family', 'kwargs', 'message'),
    [
        ('SOFT', dict(out_type='cls_token', out_indices=(2,)), r'out_indices=\(3,\)'),
        ('SOFT', dict(alpha_scope='all'), "\\['matrix', 'batch'\\]"),
        ('InLinePVT', dict(out_type='cls_token'), r"\['featmap', 'avg_featmap'\], got 'cls_token'"),
        ('InLineDeiT', dict(pyramid=True, out_type='cls_token'), "needs out_type 'featmap'"),
        ('InLineSwin', dict(inline_window_size=0), 'window_size must be None or at least 1, got 0'),
        ('InLineSwin', dict(kernel_function='elu'), r"'leaky_relu', 'affine_relu'\], got 'elu'"),
        ('InLineSwin', dict(normalization=['division']), r"'division'\], got \['division'\]"),
        ('InLineSwin', dict(dynamic_conv=None), 'dynamic_conv must be True or False, got None'),
    ],
)
def test_invalid_model_specific_arguments(family, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(family, **kwargs)
