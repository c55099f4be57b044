"""Multiply-adds as the formulas and as PyTorch's own counter count them."""

import functools

import pytest
import torch
from torch import nn

import soft_mm
from soft_mm.analysis.flops import count_executed, count_multiply_adds
from soft_mm.models.layers import (
    InLineAttention,
    LinformerAttention,
    NystromformerAttention,
    PerformerAttention,
    SelfAttention,
    SOFTAttention,
)
from soft_mm.ops import set_backend
from soft_mm.ops.gaussian_product import tiled


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
    assert counts['conv'] == B * N * C * 9
    assert counts['matmul'] == B * H * (2 * N + 1) * D * D + 10 * B * C * D


def test_the_attentions_of_softs_comparison_count_as_their_formulas():
    """Linear layers, and products of tokens with m = 12 landmarks or F = 5 features."""
    m, f = 12, 5
    x, head = torch.randn(B, N, C), B * H * D
    counts = count_multiply_adds(OnMap(LinformerAttention(C, H, 2)), x)
    assert counts['linear'] == 2 * B * (N + m) * C * C
    assert counts['conv'] == B * m * C * 4 * C
    assert counts['matmul'] == head * 2 * N * m
    counts = count_multiply_adds(OnMap(PerformerAttention(C, H)), x)
    assert counts.total() == 4 * B * N * C * C + head * 4 * N * f
    counts = count_multiply_adds(OnMap(NystromformerAttention(C, H, 2)), x)
    assert counts['linear'] == 4 * B * N * C * C
    assert counts['matmul'] == head * (4 * N * m + 2 * m * m)
    assert counts['pseudo_inverse'] == B * H * 24 * m**3


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
    assert counts == count_multiply_adds(OnMap(layer).to('meta'), x.to('meta'))


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
    assert counted[0] == count_multiply_adds(layer.to('meta'), x.to('meta'))
    counted[1].pop('layer_norm')
    assert executed[1] == sum(counted[1].values())
    m = 169
    k1 = H * 676 * m * (D + 4)  # computed a second time, from tokens that are two channels wider
    fast = H * m**3 // 2 + H * m * m * (32 - 1) * D - 20 * 2 * H * m**3
    assert executed[0] - executed[1] == k1 + (fast if solver == 'newton' else 0)


@pytest.mark.parametrize(
    ('type_', 'options'),
    [
        ('SOFT', dict(sym_norm=True)),
        ('InLinePVT', {}),
        ('InLineSwin', {}),
        ('InLineSwin', dict(inline_window_size=5)),
        ('InLineDeiT', {}),
        ('InLineCSwin', {}),
    ],
)
def test_padding_of_a_batch_is_computed_once(type_, options):
    """A batch padded to its largest image costs as much as that many images of this size."""
    model = getattr(soft_mm, type_)('tiny', img_size=64, **options).eval()
    image = torch.zeros(1, 3, 96, 72)
    assert count_executed(model, image.repeat(3, 1, 1, 1)) == 3 * count_executed(model, image)
