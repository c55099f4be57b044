import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from soft_mm.models.layers import SOFTAttention
from soft_mm.models.layers.soft_attention import nystrom_attention
from soft_mm.ops.gaussian_kernel.reference import gaussian_kernel
from soft_mm.ops.newton_inverse.reference import newton_inverse


def formula(q: Tensor, v: Tensor, landmarks: Tensor, sym_norm: bool, alpha_scope: str) -> Tensor:
    """The papers' attention, one matrix at a time."""
    k1, k2 = gaussian_kernel(q, landmarks), gaussian_kernel(landmarks, landmarks)
    whole = k2.sum(-1).max()
    out = torch.empty_like(v)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            matrix = k2[b, h]
            eye = torch.eye(len(matrix), dtype=matrix.dtype)
            norm = matrix.sum(-1).max() if alpha_scope == 'matrix' else whole
            if sym_norm:
                alpha = 2 / norm**2
                for _ in range(10):
                    every = [matrix] if alpha_scope == 'matrix' else k2.flatten(0, 1)
                    sums = [(torch.eye(len(p), dtype=p.dtype) - alpha * p @ p).abs().sum(0).max()
                            for p in every]
                    if max(sums) <= 1.01:
                        break
                    alpha = alpha / 2
                scale = torch.diag(matrix.sum(-1)**-0.5)
                inverse = scale @ newton_inverse(matrix, alpha) @ scale
            else:
                inverse = newton_inverse(matrix + 0.01 * eye, 0.9 * 2 / norm**2)
            out[b, h] = k1[b, h] @ inverse @ k1[b, h].mT @ v[b, h]
    return out


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, 35, 8), (2, 3, 35, 8), (2, 3, 9, 8)
    q, v, landmarks = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    # Matrices of different scales, so that one alpha for all differs from one for each.
    return q * 0.6, v, landmarks * torch.tensor([0.2, 0.6, 1.]).double().view(1, 3, 1, 1)


@pytest.mark.parametrize('alpha_scope', ['matrix', 'batch'])
@pytest.mark.parametrize('sym_norm', [False, True])
def test_equals_the_formula(inputs, sym_norm, alpha_scope):
    torch.testing.assert_close(nystrom_attention(*inputs, sym_norm, alpha_scope),
                               formula(*inputs, sym_norm, alpha_scope), rtol=1e-6, atol=1e-6)


def test_far_apart_landmarks_have_the_identity_for_their_inverse():
    landmarks = 100 * torch.eye(8)[None, None, :3]
    out = nystrom_attention(landmarks, torch.ones(1, 1, 3, 8), landmarks, True, 'matrix')
    torch.testing.assert_close(out, torch.ones(1, 1, 3, 8))


@pytest.mark.parametrize('sym_norm', [False, True])
def test_identical_landmarks_stay_finite(inputs, sym_norm):
    q, v, landmarks = (t.float() for t in inputs)
    leaves = [q.requires_grad_(), v.requires_grad_(),
              torch.zeros_like(landmarks).requires_grad_()]
    out = nystrom_attention(*leaves, sym_norm, 'matrix')
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_layer_follows_its_description():
    """Landmarks from each head's map, and one filter a head over the values."""
    torch.manual_seed(0)
    layer = SOFTAttention(dims=12, num_heads=3, ratio=2, kernel_size=3).double()
    x, (h, w) = torch.randn(2, 20, 12).double(), (5, 4)
    out = torch.zeros(2, 3, 20, 4).double()
    q, v = layer.q(x) / 4**0.25, layer.v(x)
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        image = q[..., part].mT.reshape(2, 4, h, w)
        tokens = layer.landmark_conv(image).flatten(2).mT
        landmarks = F.gelu(F.layer_norm(tokens, (4, )))
        assert landmarks.shape == (2, 4, 4)
        attended = formula(q[:, None, :, part], v[:, None, :, part], landmarks[:, None], False,
                           'matrix')[:, 0]
        for channel in range(4):
            values = v[..., part][..., channel].reshape(2, 1, h, w)
            local = F.conv2d(values, layer.dwconv.weight[head:head + 1], padding=1)
            out[:, head, :, channel] = attended[..., channel] + local.flatten(1)
    expected = layer.proj(out.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, (h, w)), expected, rtol=1e-6, atol=1e-6)


def test_sums_over_many_tokens_do_not_overflow_half_precision():
    layer = SOFTAttention(dims=8, num_heads=1, ratio=64, kernel_size=3)
    with torch.no_grad():
        layer.v.weight.zero_()
        layer.v.bias.fill_(100.)  # 4096 tokens of 100: over fp16's 65504
    with torch.autocast('cpu', torch.float16):
        assert layer(torch.randn(1, 4096, 8), (64, 64)).isfinite().all()


def test_arguments_are_checked():
    with pytest.raises(ValueError, match='num_heads must divide the 10 channels, got 3'):
        SOFTAttention(10, 3, 2, 3)
    with pytest.raises(ValueError, match="'matrix' or 'batch', got 'image'"):
        SOFTAttention(8, 2, 2, 3, alpha_scope='image')
    with pytest.raises(ValueError, match='3×9 map has no landmark.*at least 4×4'):
        SOFTAttention(8, 2, 4, 3)(torch.zeros(1, 27, 8), (3, 9))
