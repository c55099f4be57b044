import cv2
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from soft_mm.models import SOFT
from soft_mm.models.layers import SOFTAttention, soft_attention
from soft_mm.models.layers.landmarks import Landmarks
from soft_mm.ops import nystrom_attention
from soft_mm.ops.extension import missing
from soft_mm.ops.nystrom_attention.solvers import solve


def test_layer_matches_its_definition():
    """Each head has its own landmarks and one convolution filter, shared by its channels."""
    torch.manual_seed(0)
    layer = SOFTAttention(dims=12, num_heads=3, ratio=2, kernel_size=3).double()
    x, (h, w) = torch.randn(2, 20, 12).double(), (5, 4)
    out = torch.zeros(2, 3, 20, 4).double()
    q, v = layer.q(x) / 4**0.25, layer.v(x)
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        image = q[..., part].mT.reshape(2, 4, h, w)
        tokens = layer.landmarks.conv(image).flatten(2).mT
        landmarks = F.gelu(F.layer_norm(tokens, (4,)))
        assert landmarks.shape == (2, 4, 4)
        attended = nystrom_attention(q[:, None, :, part], v[:, None, :, part], landmarks[:, None])[
            :, 0
        ]
        for channel in range(4):
            values = v[..., part][..., channel].reshape(2, 1, h, w)
            local = F.conv2d(values, layer.dwconv.weight[head : head + 1], padding=1)
            out[:, head, :, channel] = attended[..., channel] + local.flatten(1)
    expected = layer.proj(out.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, (h, w)), expected, rtol=1e-6, atol=1e-6)


def test_sums_over_many_tokens_do_not_overflow_half_precision():
    layer = SOFTAttention(dims=8, num_heads=1, ratio=64, kernel_size=3)
    with torch.no_grad():
        layer.v.weight.zero_()
        layer.v.bias.fill_(100.0)  # 4096 tokens of 100 exceed fp16's maximum, 65504
    with torch.autocast('cpu', torch.float16):
        assert layer(torch.randn(1, 4096, 8), (64, 64)).isfinite().all()


def test_arguments_are_checked():
    with pytest.raises(ValueError, match='num_heads must divide the 10 channels, got 3'):
        SOFTAttention(10, 3, 2, 3)
    with pytest.raises(ValueError, match="matrix', 'batch'.*'image'"):
        SOFTAttention(8, 2, 2, 3, alpha_scope='image')
    with pytest.raises(ValueError, match='at least 4×4 to have a landmark, got 3×9'):
        SOFTAttention(8, 2, 4, 3)(torch.zeros(1, 27, 8), (3, 9))


def test_landmarks_without_parameters():
    q, hw = torch.randn(2, 3, 30, 4), (5, 6)
    averaged = Landmarks(4, 2, 'avg_pool')(q, hw)
    assert averaged.shape == (2, 3, 6, 4)
    corner = q.unflatten(2, hw)[:, :, :2, :2].mean((2, 3))
    torch.testing.assert_close(averaged[:, :, 0], corner)
    random = Landmarks(4, 2, 'random')
    assert not list(random.parameters())
    chosen = random(q, hw)
    assert chosen.shape == (2, 3, 6, 4)
    places = [(q[0, 0] == token).all(-1).nonzero().item() for token in chosen[0, 0]]
    assert len(set(places)) == 6
    torch.testing.assert_close(chosen, q[:, :, places])
    torch.testing.assert_close(Landmarks(4, 2, 'biased')(q, hw), q[:, :, :6], rtol=0, atol=0)


@pytest.mark.parametrize('mode', ['conv', 'avg_pool', 'random', 'biased'])
def test_num_landmarks(mode):
    """The limit holds at any size and changes nothing if there are no more landmarks anyway."""
    torch.manual_seed(0)
    unlimited, limited = Landmarks(4, 2, mode), Landmarks(4, 2, mode, num_landmarks=10)
    limited.load_state_dict(unlimited.state_dict(), strict=True)
    for hw, m in (((6, 6), 9), ((7, 6), 9), ((4, 40), 6), ((60, 50), 9)):
        q = torch.randn(1, 2, hw[0] * hw[1], 4)
        assert limited(q, hw).shape == (1, 2, m, 4)
        if hw == (6, 6) and mode != 'random':
            torch.testing.assert_close(limited(q, hw), unlimited(q, hw), rtol=0, atol=0)
    if mode == 'avg_pool':  # the mean of the landmarks is the mean of all tokens
        torch.testing.assert_close(
            limited(q, hw).mean(2)[..., 0], q.mean(2)[..., 0], atol=2e-2, rtol=0
        )


def test_landmark_arguments_are_checked():
    with pytest.raises(ValueError, match=r"landmarks must be one of \['conv', .*'pool'"):
        SOFTAttention(8, 2, 4, 3, landmarks='pool')
    with pytest.raises(ValueError, match='num_landmarks must be None or at least 1, got 0'):
        SOFTAttention(8, 2, 4, 3, num_landmarks=0)


@pytest.fixture
def photograph(shared) -> Tensor:
    image = cv2.imread(str(sorted((shared('data') / 'coco/val2017').glob('*.jpg'))[0]))
    image = torch.from_numpy(cv2.resize(image, (160, 160))).permute(2, 0, 1)[None]
    return (image - image.float().mean((2, 3), keepdim=True)) / 57


def authors_attention(q: Tensor, v: Tensor, landmarks: Tensor, sym_norm: bool) -> Tensor:
    """The released formulas under autocast: products and squared norms in the dtype of q.

    The inverse is computed in fp32, which is better than the released code.
    """

    def product(a: Tensor, b: Tensor) -> Tensor:
        return a.to(q.dtype) @ b.to(q.dtype)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        a_norms = product(a.float().square(), torch.ones_like(b).mT)
        b_norms = product(torch.ones_like(a), b.float().square().mT)
        return (-0.5 * (a_norms + b_norms - 2 * product(a, b.mT))).float().exp()

    k1, k2 = kernel(q, landmarks), kernel(landmarks, landmarks)
    values = product(k1.mT, v).float()
    return product(k1, solve(k2, values, sym_norm, 'iteration', 'matrix', 'reference'))


@pytest.mark.parametrize('backend', ['torch', 'extension', 'triton'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('sym_norm', [False, True])
def test_autocast_on_a_photograph(photograph, sym_norm, dtype, backend, device, monkeypatch):
    """Half-precision tokens reach the op, whose errors are at most those of the released formulas."""
    if backend == 'extension' and missing(device):
        pytest.skip(missing(device))
    torch.manual_seed(0)
    model, calls = SOFT('tiny', sym_norm).to(device).eval(), []

    def attention(*args, **kwargs):
        calls.append(args[:3])
        return nystrom_attention(*args, **kwargs)

    monkeypatch.setattr(soft_attention, 'nystrom_attention', attention)
    with torch.no_grad(), torch.autocast(device, dtype):
        model(photograph.to(device))
    assert all(x.dtype == dtype for call in calls for x in call)
    for call in calls[0], calls[1], calls[3]:  # the first of each stage
        grad = torch.randn(call[1].shape, generator=torch.Generator().manual_seed(1)).to(call[1])
        outcomes = []
        for fn, kind in (
            (lambda *x: nystrom_attention(*x, sym_norm, backend='reference'), torch.float64),
            (lambda *x: authors_attention(*x, sym_norm), dtype),
            (lambda *x: nystrom_attention(*x, sym_norm, backend=backend, dtype=dtype), dtype),
        ):
            leaves = [x.detach().to(kind).requires_grad_() for x in call]
            out = fn(*leaves)
            outcomes.append([out, *torch.autograd.grad(out, leaves, grad.to(out))])
        for exact, theirs, ours in zip(*outcomes):
            assert ours.dtype == dtype
            assert (ours - exact).norm() <= (theirs - exact).norm()
