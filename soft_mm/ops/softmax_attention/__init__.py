"""Softmax attention, which is also Linformer's."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import choose_backend
from ..shapes import check_shapes
from .reference import softmax_attention as materialised_softmax_attention


def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """``softmax(s·q kᵀ + mask) · v`` with ``s = d^-½``.

    Scaled dot-product attention (arXiv 1706.03762, §3.2.1). In Linformer (arXiv 2006.04768), k and
    v are a smaller number of tokens than q.

    Args:
        q: queries ``(..., M, d)``, any strides.
        k: keys ``(..., N, d)``, same leading dimensions.
        v: values ``(..., N, e)``.
        mask: added to the scores or, if bool, the keys that a query attends to; broadcasts to
            ``(..., M, N)``.
        backend: 'reference' materialises the weights; all others call PyTorch's
            ``scaled_dot_product_attention``, whose fused kernels do not.

    Returns:
        ``(..., M, e)`` in the dtype of v.

    Raises:
        ValueError: if the leading dimensions, ``d`` or ``N`` differ, or the backend does not exist.
    """
    check_shapes(q, k, v)
    if choose_backend(backend, q.device) != 'reference':
        return F.scaled_dot_product_attention(q, k, v, mask)
    if mask is None or mask.dtype == torch.bool:
        return materialised_softmax_attention(q, k, v, attended=mask).to(v.dtype)
    return materialised_softmax_attention(q, k, v, bias=mask).to(v.dtype)
