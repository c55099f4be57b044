from .drop_path import DropPath
from .mlp import MLP
from .patch_embed import ConvPatchEmbed
from .position_embed import PositionEmbed
from .soft_attention import SOFTAttention
from .transformer_block import SelfAttention, TransformerBlock

__all__ = ['MLP', 'ConvPatchEmbed', 'DropPath', 'PositionEmbed', 'SOFTAttention', 'SelfAttention',
           'TransformerBlock']
