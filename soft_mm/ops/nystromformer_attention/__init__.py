"""Nyströmformer's attention."""

from torch import Tensor

from ..backend import choose_backend
from ..precision import at_least_fp32
from ..pseudo_inverse import pseudo_inverse
from ..shapes import check_shapes
from ..softmax_attention import softmax_attention
from ..softmax_attention.reference import attention_rows
from .reference import nystromformer_attention as materialised_nystromformer_attention


def nystromformer_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_landmarks: Tensor,
    k_landmarks: Tensor,
    backend: str | None = None,
) -> Tensor:
    """``S(q, k̃) · pinv(S(q̃, k̃)) · S(q̃, k) · v`` with ``S(a, b) = softmax(d^-½·a bᵀ)``, in O(N·m).

    Nyströmformer (arXiv 2102.03902, §3), with landmarks q̃ of the queries and k̃ of the keys. It is
    the attention of softmax; that of SOFT is :func:`soft_mm.ops.nystrom_attention`.

    Args:
        q: queries ``(..., M, d)``, any strides.
        k: keys ``(..., N, d)``, same leading dimensions.
        v: values ``(..., N, e)``.
        q_landmarks: landmarks of the queries ``(..., m, d)``.
        k_landmarks: landmarks of the keys ``(..., m, d)``.
        backend: 'reference' materialises every matrix; all others only those of m×m landmarks.

    Returns:
        ``(..., M, e)`` in the dtype of v.

    Raises:
        ValueError: if the leading dimensions, ``d``, ``N`` or ``m`` differ, or the backend does not
            exist.
    """
    check_shapes(q, k, v)
    check_shapes(q, k_landmarks, q_landmarks)
    if choose_backend(backend, q.device) == 'reference':
        arguments = q, k, v, q_landmarks, k_landmarks
        return materialised_nystromformer_attention(*arguments).to(v.dtype)
    values = softmax_attention(q_landmarks, k, v, backend=backend)
    values = _solve(q_landmarks, k_landmarks, values, backend).to(v.dtype)
    return softmax_attention(q, k_landmarks, values, backend=backend)


@at_least_fp32
def _solve(q_landmarks: Tensor, k_landmarks: Tensor, values: Tensor, backend: str | None) -> Tensor:
    """``pinv(S(q̃, k̃)) · values``: landmarks ``(..., m, d)``, values ``(..., m, e)``."""
    return pseudo_inverse(attention_rows(q_landmarks, k_landmarks), backend=backend) @ values
