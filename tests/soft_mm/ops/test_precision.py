import pytest
import torch

from soft_mm.ops import gaussian_kernel, inline_attention, newton_solve, nystrom_attention

H = torch.randn(1, 2, 6, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_arguments_by_keyword_are_converted_too(dtype):
    h = H.to(dtype)
    p = gaussian_kernel(q=h, k=h)
    assert p.dtype == torch.promote_types(dtype, torch.float32)
    assert p.equal(gaussian_kernel(h, h))
    assert nystrom_attention(h, v=h, landmarks=h).equal(nystrom_attention(h, h, h))
    assert nystrom_attention(q=h, v=h, landmarks=h).equal(nystrom_attention(h, h, h))
    assert inline_attention(h, v=h, k=h).equal(inline_attention(h, h, h))
    alpha = torch.full((1, 1), 0.01, dtype=dtype)
    assert newton_solve(p.to(dtype), alpha=alpha, v=h).equal(newton_solve(p.to(dtype), h, alpha))


def test_mixed_dtypes_meet_in_the_widest():
    out = nystrom_attention(H.half(), v=H.double(), landmarks=H)
    assert out.dtype == torch.float64


def test_autocast_is_off_inside_for_keywords():
    with torch.autocast('cpu', torch.bfloat16):
        out = gaussian_kernel(q=H, k=H)
    assert out.equal(gaussian_kernel(H, H))
