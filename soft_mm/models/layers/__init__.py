from .drop_path import DropPath
from .inline_attention import InLineAttention
from .linformer_attention import LinformerAttention
from .mlp import MLP
from .norm import LayerNorm2d
from .nystromformer_attention import NystromformerAttention
from .patch_embed import ConvPatchEmbed, PatchEmbed, PatchMerging
from .performer_attention import PerformerAttention
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
    'LinformerAttention',
    'NystromformerAttention',
    'PatchEmbed',
    'PatchMerging',
    'PerformerAttention',
    'PositionEmbed',
    'RelativePositionBias',
    'SOFTAttention',
    'SelfAttention',
    'TransformerBlock',
    'WindowAttention',
]
