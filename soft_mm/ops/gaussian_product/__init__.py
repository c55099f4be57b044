"""Product of a Gaussian kernel matrix with values, without materialising the matrix."""

import torch
from torch import Tensor

from ..backend import choose_backend
from ..extension import missing
from ..gaussian_kernel import gaussian_kernel
from ..shapes import check_shapes
from .op import gaussian_product as _gaussian_product


def gaussian_product(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    backend: str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``Σ_j exp(-½‖q_i − k_j‖²) v_j`` (SOFT, arXiv 2110.11945, §3.1), in O(N + M) memory.

    Args:
        q: ``(..., M, d)``, any strides.
        k: ``(..., N, d)``, same leading dimensions and device.
        v: ``(..., N, e)``.
        backend: 'triton' keeps tiles of the matrix in registers and supports fp32 and half
            precision and head dimensions ``d`` and ``e`` up to 64, and multiplies in TF32, or in
            half precision if q and k are, with fp32 sums and exponents; 'extension', the compiled
            C++ op, which is the default on a CPU if it is built, keeps them in the cache;
            'standard' materialises the matrix; all others compute it tile by tile in PyTorch.
        dtype: dtype of the result; by default fp32 or better.

    Returns:
        ``(..., M, e)``. Differentiable in q, k and v.

    Raises:
        ValueError: if the leading dimensions, the head dimensions ``d`` or the token counts ``N``
            differ, or the backend does not exist.
        RuntimeError: if the backend is 'extension' on a CPU and the extension is not built.
    """
    check_shapes(q, k, v)
    backend = choose_backend(backend, q.device, 'torch' if missing() else 'extension')
    if backend == 'standard':
        out = gaussian_kernel(q, k, backend) @ v
        return out if dtype is None else out.to(dtype)
    return _gaussian_product(q, k, v, backend, dtype)
