"""The rows and filters of every attention layer make up its output."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import soft_mm
from soft_mm.analysis.attention import AttentionCall, record_attention
from soft_mm.models.layers import (
    CrossShapedAttention,
    InLineAttention,
    LinformerAttention,
    NystromformerAttention,
    PerformerAttention,
    SelfAttention,
    SOFTAttention,
    WindowAttention,
)
from soft_mm.models.layers.inline_attention import KERNEL_FUNCTIONS, NORMALIZATIONS
from soft_mm.models.layers.maps import as_map
from soft_mm.ops.shapes import split_heads
from soft_mm.ops.windows import Windows

DIMS, HEADS, SIZE = 8, 2, 3
LAYERS = {
    'SOFT': lambda: SOFTAttention(DIMS, HEADS, 2, 5),
    'SOFT-Norm': lambda: SOFTAttention(DIMS, HEADS, 2, 5, sym_norm=True),
    'SOFT, ridge': lambda: SOFTAttention(DIMS, HEADS, 2, 5, 'avg_pool', 4, solver='ridge'),
    'InLine': lambda: InLineAttention(DIMS, HEADS),
    'InLine, windows': lambda: InLineAttention(DIMS, HEADS, SIZE),
    'InLine, shifted windows': lambda: InLineAttention(DIMS, HEADS, SIZE, shifted=True),
    'InLine, CSwin': lambda: InLineAttention(DIMS, HEADS, lepe=True),
    **{
        f'InLine, {function}, {normalization}': partial(
            InLineAttention,
            DIMS,
            HEADS,
            SIZE,
            shifted=True,
            kernel_function=function,
            normalization=normalization,
        )
        for function in KERNEL_FUNCTIONS
        for normalization in NORMALIZATIONS
    },
    'InLine, no convolution': lambda: InLineAttention(DIMS, HEADS, SIZE, dynamic_conv=False),
    'InLine, relu, class token': lambda: InLineAttention(DIMS, HEADS, kernel_function='relu'),
    'InLine, CSwin, no dynamic convolution': lambda: InLineAttention(
        DIMS, HEADS, lepe=True, dynamic_conv=False
    ),
    'softmax': lambda: SelfAttention(DIMS, HEADS),
    'Performer': lambda: PerformerAttention(DIMS, HEADS),
    'Nyströmformer': lambda: NystromformerAttention(DIMS, HEADS, 2),
    'Nyströmformer, 4 landmarks': lambda: NystromformerAttention(DIMS, HEADS, 2, 4),
    'windows': lambda: WindowAttention(DIMS, HEADS, SIZE, False),
    'shifted windows': lambda: WindowAttention(DIMS, HEADS, SIZE, True),
    'stripes': lambda: CrossShapedAttention(DIMS, HEADS, SIZE),
    'one stripe': lambda: CrossShapedAttention(DIMS, HEADS, None),
}
WITH_CLASS_TOKEN = ('InLine', 'InLine, relu, class token', 'softmax')
MAPS = [(6, 6), (7, 10), (2, 8), (13, 4)]


def call_of(name: str, hw: tuple[int, int]) -> AttentionCall:
    torch.manual_seed(0)
    layer = LAYERS[name]().double()
    if isinstance(layer, WindowAttention):
        nn.init.normal_(layer.relative_position_bias.weight)
    num_tokens = hw[0] * hw[1] + (name in WITH_CLASS_TOKEN)
    x, described = torch.randn(2, 2, num_tokens, DIMS, dtype=torch.float64)
    kwargs = dict(described=described) if 'CSwin' in name else {}
    return AttentionCall(0, 0, 4, layer, x, hw, kwargs)


def windows_of(layer: nn.Module, hw: tuple[int, int]) -> list[Windows]:
    """The windows that the layer convolves in, for each of equal parts of the channels."""
    if isinstance(layer, InLineAttention):
        return [Windows.fit(hw, layer.window_size, layer.shifted)]
    if size := getattr(layer, 'stripe_size', None):
        return [Windows(hw, (hw[0], min(size, hw[1]))), Windows(hw, (min(size, hw[0]), hw[1]))]
    return [Windows(hw, hw)]


def neighbours(v: Tensor, windows: Windows, side: int) -> Tensor:
    """Values around each token in its window: ``(B, N, C)`` -> ``(B, N, C, side, side)``."""
    maps = as_map(windows.split(v), windows.size)
    return windows.join(F.unfold(maps, side, padding=side // 2).mT).unflatten(2, (-1, side, side))


def output(call: AttentionCall) -> Tensor:
    """The layer's output, from its rows and filters."""
    layer, tokens = call.layer, torch.arange(call.x.shape[1])
    v = layer.v(call.x) if isinstance(layer, SOFTAttention) else layer.qkv(call.x).chunk(3, -1)[2]
    rows = call.rows(tokens)
    out = (rows @ split_heads(v, rows.shape[1])).transpose(1, 2)
    filters = call.filters(tokens)
    if filters is not None:
        assert not filters[:, : call.num_extra].any()
        parts = windows_of(layer, call.hw)
        values = v[:, call.num_extra :].chunk(len(parts), -1)
        around = [
            neighbours(part, windows, filters.shape[-1]) for part, windows in zip(values, parts)
        ]
        around = F.pad(torch.cat(around, 2), (0,) * 6 + (call.num_extra, 0))
        out = out + (filters * around.unflatten(2, (rows.shape[1], -1))).sum((-2, -1))
    biases = [m.bias for m in layer.modules() if isinstance(m, nn.Conv2d) and m.bias is not None]
    return layer.proj(out.flatten(2) + (torch.cat(biases) if biases else 0))


@pytest.mark.parametrize('hw', MAPS)
@pytest.mark.parametrize('name', LAYERS)
@torch.no_grad()
def test_rows_and_filters_make_up_the_output(name, hw):
    """In fp64, so that they differ by rounding alone, which inverses of K2 amplify a little."""
    call = call_of(name, hw)
    torch.testing.assert_close(output(call), call.layer(call.x, hw, **call.kwargs))


class Adapter(nn.Module):
    """A layer plus a fraction of another one, as an adapter that is trained beside it."""

    def __init__(self, base: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.base = base
        self.delta = copy.deepcopy(base).requires_grad_(False)
        self.delta.weight.normal_()
        self.delta.bias = None

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.1 * self.delta(x)


@pytest.mark.parametrize('name', ['SOFT', 'InLine, CSwin', 'stripes'])
@torch.no_grad()
def test_rows_and_filters_of_adapted_layers(name):
    call = call_of(name, (7, 10))
    before = output(call)
    for child in 'q', 'qkv', 'dwconv':
        if hasattr(call.layer, child):
            setattr(call.layer, child, Adapter(getattr(call.layer, child)))
    if isinstance(call.layer, CrossShapedAttention):
        call.layer.lepe = nn.ModuleList(map(Adapter, call.layer.lepe))
    elif name == 'InLine, CSwin':
        call.layer.lepe = Adapter(call.layer.lepe)
    expected = call.layer(call.x, call.hw, **call.kwargs)
    torch.testing.assert_close(output(call), expected)
    assert not torch.allclose(before, expected)


@pytest.mark.parametrize('name', LAYERS)
@torch.no_grad()
def test_rows_of_some_queries(name):
    call = call_of(name, (7, 10))
    some, every = torch.tensor([5, 0, 33]), torch.arange(call.x.shape[1])
    rows = call.rows(some)
    torch.testing.assert_close(rows, call.rows(every)[:, :, some])
    if (filters := call.filters(some)) is not None:
        torch.testing.assert_close(filters, call.filters(every)[:, some])
    if not name.startswith(('SOFT', 'Nyströmformer')) and 'division' not in name:
        torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows[..., 0]))


@pytest.mark.parametrize(('hw', 'num_landmarks'), [((6, 6), None), ((7, 10), None), ((13, 5), 4)])
@torch.no_grad()
def test_rows_of_linformer(hw, num_landmarks):
    """With a reduction that averages, the rows make up what it attends to."""
    torch.manual_seed(0)
    layer = LinformerAttention(DIMS, HEADS, 2, num_landmarks).double()
    layer.reduction.weight.copy_(torch.eye(DIMS)[:, :, None, None] / 4)
    layer.reduction.bias.zero_()
    layer.norm = nn.Identity()
    x = torch.randn(2, hw[0] * hw[1], DIMS, dtype=torch.float64)
    rows = layer.rows(x, hw, torch.arange(x.shape[1]))
    torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows[..., 0]))
    v = layer.kv(x).chunk(2, -1)[1]
    out = (rows @ split_heads(v, HEADS)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer.proj(out), layer(x, hw))
    some = torch.tensor([5, 0, 33])
    torch.testing.assert_close(layer.rows(x, hw, some), rows[:, :, some])


STAGES = dict(channels=(8, 8, 16, 16), num_heads=(2, 2, 4, 4), depths=(1, 2, 1, 2))
BACKBONES = {
    'SOFT': dict(arch=dict(STAGES, kernel_sizes=(9, 5, 3)), sym_norm=True),
    'InLineDeiT': dict(arch=dict(channels=(16,), num_heads=(4,), depths=(2,))),
    'InLinePVT': dict(arch=dict(STAGES, mlp_ratios=(4, 4, 4, 4)), inline_window_size=5),
    'InLineSwin': dict(arch=dict(STAGES, inline_depths=(1, 1, 0, 0)), window_size=2),
    'InLineCSwin': dict(arch=STAGES, stripe_size=3),
}


@pytest.mark.parametrize('family', BACKBONES)
@torch.no_grad()
def test_every_layer_of_a_backbone_is_recorded(family):
    torch.manual_seed(0)
    backbone = getattr(soft_mm, family)(**BACKBONES[family]).double().eval()
    image = torch.randn(1, 3, 97, 45, dtype=torch.float64)
    before = backbone(image)
    calls = record_attention(backbone, image)
    depths = BACKBONES[family]['arch']['depths']
    assert [(c.stage, c.block) for c in calls] == [
        (i, j) for i, depth in enumerate(depths) for j in range(depth)
    ]
    for call in calls:
        assert call.stride == backbone.strides[call.stage]
        assert tuple(call.hw) == (-(-97 // call.stride), -(-45 // call.stride))
        assert call.num_extra == (family == 'InLineDeiT' or family == 'SOFT' and call.stage == 3)
        torch.testing.assert_close(output(call), call.layer(call.x, call.hw, **call.kwargs))
    torch.testing.assert_close(backbone(image), before, rtol=0, atol=0)
    assert not any(m._forward_pre_hooks for m in backbone.modules())
