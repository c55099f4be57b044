from .gaussian_kernel import gaussian_kernel
from .newton_inverse import newton_inverse

__all__ = ['gaussian_kernel', 'newton_inverse']
