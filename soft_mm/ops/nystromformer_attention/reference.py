"""Nyströmformer's attention as the paper writes it, with materialised matrices."""

from torch import Tensor

from ..precision import at_least_fp32
from ..pseudo_inverse.reference import pseudo_inverse
from ..softmax_attention.reference import attention_rows as softmax_rows


@at_least_fp32
def nystromformer_attention(
    q: Tensor, k: Tensor, v: Tensor, q_landmarks: Tensor, k_landmarks: Tensor
) -> Tensor:
    """q ``(..., M, d)``, k ``(..., N, d)``, v ``(..., N, e)``, landmarks ``(..., m, d)``.

    Returns:
        ``(..., M, e)``.
    """
    return attention_rows(q, k, q_landmarks, k_landmarks) @ v


@at_least_fp32
def attention_rows(q: Tensor, k: Tensor, q_landmarks: Tensor, k_landmarks: Tensor) -> Tensor:
    """Attention weights ``(..., M, N)``.

    Rows sum to 1 where the pseudo-inverse has converged, and weights may be negative. The arguments
    are those of :func:`soft_mm.ops.nystromformer_attention`.
    """
    inverse = pseudo_inverse(softmax_rows(q_landmarks, k_landmarks))
    return softmax_rows(q, k_landmarks) @ inverse @ softmax_rows(q_landmarks, k)
