from .drop_path import DropPath
from .inline_attention import InLineAttention
from .mlp import MLP
from .norm import LayerNorm2d
from .patch_embed import ConvPatchEmbed, PatchEmbed, PatchMerging
from .position_embed import PositionEmbed, RelativePositionBias
from .soft_attention import SOFTAttention
from .softmax_attention import CrossShapedAttention, SelfAttention, WindowAttention
from .transformer_block import TransformerBlock

__all__ = [
    'MLP',
    'ConvPatchEmbed',
    'CrossShapedAttention',
    'DropPath',
    'InLineAttention',
    'LayerNorm2d',
    'PatchEmbed',
    'PatchMerging',
    'PositionEmbed',
    'RelativePositionBias',
    'SOFTAttention',
    'SelfAttention',
    'TransformerBlock',
    'WindowAttention',
]
