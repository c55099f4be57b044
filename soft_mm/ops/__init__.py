from .backend import set_backend
from .dynamic_conv import dynamic_conv
from .gaussian_kernel import gaussian_kernel
from .gaussian_product import gaussian_product
from .inline_attention import (
    inline_attention,
    inline_projected_attention,
    inline_self_attention,
    linear_attention,
)
from .linear import linear
from .mlp import mlp
from .newton_inverse import newton_inverse
from .newton_solve import newton_solve
from .nystrom_attention import nystrom_attention
from .nystromformer_attention import nystromformer_attention
from .performer_attention import performer_attention
from .pseudo_inverse import pseudo_inverse
from .ridge_solve import ridge_solve
from .softmax_attention import softmax_attention

__all__ = [
    'dynamic_conv',
    'gaussian_kernel',
    'gaussian_product',
    'inline_attention',
    'inline_projected_attention',
    'inline_self_attention',
    'linear',
    'linear_attention',
    'mlp',
    'newton_inverse',
    'newton_solve',
    'nystrom_attention',
    'nystromformer_attention',
    'performer_attention',
    'pseudo_inverse',
    'ridge_solve',
    'set_backend',
    'softmax_attention',
]
