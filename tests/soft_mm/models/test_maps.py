"""Feature maps stay channels last, the layout of tokens, so that conversions copy nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import soft_mm
from soft_mm.models.layers import PatchEmbed
from soft_mm.models.layers.maps import as_map


@pytest.mark.parametrize('batch', [1, 2])
def test_convolutions_treat_tokens_as_channels_last(batch):
    tokens, weight = torch.randn(batch, 6 * 10, 8), torch.randn(4, 8, 3, 3)
    maps = as_map(tokens, (6, 10))
    assert maps.data_ptr() == tokens.data_ptr()
    assert torch.equal(maps, tokens.mT.reshape(batch, 8, 6, 10))
    assert F.conv2d(maps, weight).stride(1) == 1


@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('backbone', [soft_mm.SOFT, soft_mm.InLinePVT])
def test_patch_embeddings_output_channels_last(backbone, batch):
    outs = []
    model = backbone('tiny').eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            module.register_forward_hook(lambda module, args, out: outs.append(out))
    with torch.no_grad():
        model(torch.randn(batch, 3, 64, 96))
    assert len(outs) >= 4
    assert all(out.stride(1) == 1 for out in outs)


def test_patch_embed_accepts_channels_first_images():
    layer, image = PatchEmbed(3, 8, 4, 4), torch.randn(2, 3, 10, 9)
    expected = F.layer_norm(layer.proj(F.pad(image, (0, 3, 0, 2))).permute(0, 2, 3, 1), (8,))
    torch.testing.assert_close(layer(image), expected.permute(0, 3, 1, 2))
