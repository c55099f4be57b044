from .gaussian_kernel import gaussian_kernel
from .inline_attention import inline_attention
from .newton_inverse import newton_inverse

__all__ = ['gaussian_kernel', 'inline_attention', 'newton_inverse']
