"""Attention in windows and stripes, on feature maps that are not a multiple of their size.

The reference applies each layer's definition to one group of tokens at a time, without padding;
groups follow from the positions of the tokens.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soft_mm.models.layers import (
    CrossShapedAttention,
    InLineAttention,
    SelfAttention,
    WindowAttention,
)
from soft_mm.ops.inline_attention.reference import inline_attention
from soft_mm.ops.windows import Windows

MAPS = [(6, 6), (7, 10), (3, 3), (2, 8), (1, 1), (13, 4)]
DIMS, HEADS, SIZE = 8, 2, 3


def tokens(hw: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(hw[0])
    return torch.randn(2, hw[0] * hw[1], DIMS, dtype=torch.float64, generator=generator)


def make(layer: type[nn.Module], *args, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    return layer(DIMS, HEADS, *args, **kwargs).double()


def filters_of(layer: InLineAttention, mean: Tensor) -> Tensor:
    """Filters from mean tokens ``(B, C)``, by grouped convolutions as in the paper."""
    first, activation, last = layer.filters
    hidden = activation(nn.Conv1d.forward(first, mean.unsqueeze(-1)))
    return nn.Conv1d.forward(last, hidden).view(*mean.shape, 3, 3)


@pytest.mark.parametrize('hw', MAPS)
@pytest.mark.parametrize('shift', [(0, 0), (1, 2)])
def test_split_and_join(hw, shift):
    x = tokens(hw)
    windows = Windows(hw, (3, 4), shift)
    parts = windows.split(x)
    assert parts.shape[1:] == (12, DIMS)
    torch.testing.assert_close(windows.join(parts), x, rtol=0, atol=0)
    torch.testing.assert_close(windows.num_tokens(x).sum(), torch.tensor(2.0 * hw[0] * hw[1]))
    real = windows.real(x.device).repeat(2, 1)
    torch.testing.assert_close(windows.num_tokens(x)[:, 0], real.sum(1).float())
    assert not parts[~real].any()
    # The gradient of a permutation goes the other way.
    x.requires_grad_()
    grad = torch.randn_like(parts)
    (got,) = torch.autograd.grad(windows.split(x), x, grad)
    torch.testing.assert_close(got, windows.join(grad), rtol=0, atol=0)
    parts.requires_grad_()
    (got,) = torch.autograd.grad(windows.join(parts), parts, x.detach())
    torch.testing.assert_close(got, windows.split(x.detach()), rtol=0, atol=0)


@pytest.mark.parametrize('hw', [(2, 5), (4, 4)])
def test_gradients_of_split_and_join(hw):
    windows = Windows(hw, (2, 3), (1, 1))
    x = tokens(hw).requires_grad_()
    assert torch.autograd.gradcheck(windows.split, x)
    assert torch.autograd.gradgradcheck(windows.split, x)
    assert torch.autograd.gradcheck(windows.join, windows.split(x).detach().requires_grad_())


def places(side: int, size: int, shifted: bool) -> list[tuple[int, int, bool]]:
    """Window, position in the window and whether it wrapped around, for each position of a side.

    The side is padded to a multiple of ``size``; shifted windows move by half of it.
    """
    size = min(side, size)
    shift = size // 2 if shifted and side > size else 0
    padded = -(-side // size) * size
    return [
        ((p - shift) % padded // size, (p - shift) % padded % size, p < shift) for p in range(side)
    ]


def groups(hw: tuple[int, int], shifted: bool, keep_apart: bool) -> list[tuple[list, list]]:
    """Indices and positions ``(row, column)`` of the tokens of each window.

    ``keep_apart`` separates tokens that wrapped around from the others.
    """
    found: dict = {}
    axes = (places(side, SIZE, shifted) for side in hw)
    for i, ((wy, y, ay), (wx, x, ax)) in enumerate(itertools.product(*axes)):
        indices, where = found.setdefault((wy, wx, *((ay, ax) if keep_apart else ())), ([], []))
        indices.append(i)
        where.append((y, x))
    return list(found.values())


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def convolved(v: Tensor, where: list, filters: Tensor) -> Tensor:
    """Convolve values ``(B, n, C)`` at positions ``where`` with filters ``(B, C, 3, 3)``."""
    out = torch.zeros_like(v)
    for (i, (y, x)), (j, (ky, kx)) in itertools.product(enumerate(where), repeat=2):
        if max(abs(ky - y), abs(kx - x)) <= 1:
            out[:, i] += filters[:, :, ky - y + 1, kx - x + 1] * v[:, j]
    return out


@pytest.mark.parametrize('hw', MAPS)
@pytest.mark.parametrize(('shifted', 'lepe'), [(False, False), (True, False), (False, True)])
def test_inline_windows(hw, shifted, lepe):
    layer, x = make(InLineAttention, SIZE, shifted, lepe), tokens(hw)
    described = tokens(hw).flip(1)
    expected = torch.empty_like(x)
    for indices, where in groups(hw, shifted, keep_apart=False):
        q, k, v = layer.qkv(x[:, indices]).chunk(3, -1)
        out = inline_attention(heads(q), heads(k), heads(v)).transpose(1, 2).flatten(2)
        filters = filters_of(layer, described[:, indices].mean(1))
        out = out + convolved(v, where, filters)
        if lepe:
            out = out + convolved(v, where, layer.lepe.weight[None, :, 0]) + layer.lepe.bias
        expected[:, indices] = layer.proj(out)
    torch.testing.assert_close(layer(x, hw, described), expected)


@pytest.mark.parametrize('hw', MAPS)
@pytest.mark.parametrize('shifted', [False, True])
def test_softmax_windows(hw, shifted):
    layer, x = make(WindowAttention, SIZE, shifted), tokens(hw)
    table = nn.init.normal_(layer.relative_position_bias.weight)[0]
    expected = torch.empty_like(x)
    for indices, where in groups(hw, shifted, keep_apart=True):
        q, k, v = (heads(t) for t in layer.qkv(x[:, indices]).chunk(3, -1))
        bias = torch.stack(
            [
                table[:, y - ky + SIZE - 1, x - kx + SIZE - 1]
                for (y, x), (ky, kx) in itertools.product(where, repeat=2)
            ],
            -1,
        )
        scores = q @ k.mT * (DIMS // HEADS) ** -0.5 + bias.unflatten(-1, (len(where), -1))
        expected[:, indices] = layer.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, hw), expected)


@pytest.mark.parametrize('hw', MAPS)
@pytest.mark.parametrize('stripe_size', [SIZE, None])
def test_stripes(hw, stripe_size):
    layer, x = make(CrossShapedAttention, stripe_size), tokens(hw)
    height, width = hw
    branches = [lambda y, x: x // SIZE, lambda y, x: y // SIZE] if stripe_size else [lambda y, x: 0]
    outs = []
    for i, stripe in enumerate(branches):
        positions = list(itertools.product(range(height), range(width)))
        channels = slice(i * DIMS // len(branches), (i + 1) * DIMS // len(branches))
        out = torch.empty_like(x[..., channels])
        for number in {stripe(*p) for p in positions}:
            indices = [j for j, p in enumerate(positions) if stripe(*p) == number]
            q, k, v = (t[..., channels] for t in layer.qkv(x[:, indices]).chunk(3, -1))
            split = [
                t.unflatten(-1, (HEADS // len(branches), -1)).transpose(1, 2) for t in (q, k, v)
            ]
            attended = (
                (F.softmax(split[0] @ split[1].mT * (DIMS // HEADS) ** -0.5, -1) @ split[2])
                .transpose(1, 2)
                .flatten(2)
            )
            where = [positions[j] for j in indices]
            lepe = layer.lepe[i]
            out[:, indices] = attended + convolved(v, where, lepe.weight[None, :, 0]) + lepe.bias
        outs.append(out)
    torch.testing.assert_close(layer(x, hw), layer.proj(torch.cat(outs, -1)))


def test_class_token_attends_but_is_not_convolved():
    layer, hw = make(InLineAttention), (3, 5)
    x = torch.cat((tokens((1, 1)), tokens(hw)), 1)
    q, k, v = layer.qkv(x).chunk(3, -1)
    out = inline_attention(heads(q), heads(k), heads(v)).transpose(1, 2).flatten(2)
    filters = filters_of(layer, x.mean(1))
    where = list(itertools.product(range(3), range(5)))
    out[:, 1:] += convolved(v[:, 1:], where, filters)
    torch.testing.assert_close(layer(x, hw), layer.proj(out))


@pytest.mark.parametrize(
    'layer',
    [
        InLineAttention,
        SelfAttention,
        lambda *args: WindowAttention(*args, 7, False),
        lambda *args: CrossShapedAttention(*args, None),
    ],
)
def test_heads_are_checked(layer):
    with pytest.raises(ValueError, match='num_heads must divide the 8 channels, got 3'):
        layer(8, 3)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match='window_size must be None or at least 1, got 0'):
        InLineAttention(8, 2, 0)
    with pytest.raises(ValueError, match='num_heads must be a multiple of 2, .*, got 1'):
        CrossShapedAttention(8, 1, 7)
