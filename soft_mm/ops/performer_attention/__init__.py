"""Performer's linear attention."""

from torch import Tensor

from ..backend import choose_backend
from ..precision import at_least_fp32
from ..shapes import check_shapes
from .reference import performer_attention as materialised_performer_attention


@at_least_fp32
def performer_attention(
    q: Tensor, k: Tensor, v: Tensor, features: Tensor, backend: str | None = None
) -> Tensor:
    """``φ(q) · (φ(k)ᵀ v)``, each row divided by ``φ(q) · Σ_j φ(k_j)``, in O(N).

    Performer (arXiv 2009.14794): positive random features φ, for which ``φ(q)·φ(k)`` estimates
    softmax attention's ``exp(s·q·k)`` with ``s = d^-½``.

    Args:
        q: queries ``(..., M, d)``, any strides.
        k: keys ``(..., N, d)``, same leading dimensions.
        v: values ``(..., N, e)``.
        features: directions ``(F, d)`` of the random features, for instance those of ``features.py``.
        backend: 'reference' materialises the weights; all others take linear time and memory.

    Returns:
        ``(..., M, e)`` in fp32 or better.

    Raises:
        ValueError: if the leading dimensions, ``d`` or ``N`` differ, or the backend does not exist.
    """
    check_shapes(q, k, v)
    if choose_backend(backend, q.device) == 'reference':
        return materialised_performer_attention(q, k, v, features)
    scale = q.shape[-1] ** -0.25
    projection = scale * features.mT
    # Logarithms of φ, up to terms that cancel in the quotient. Both normalisations are softmaxes,
    # which are finite whatever the length of the tokens; the largest value of a feature cancels too.
    log_keys = k @ projection - scale**2 / 2 * k.square().sum(-1, keepdim=True)
    largest = log_keys.detach().amax(-2, keepdim=True)
    weights = (log_keys - largest).exp()
    sums = weights.sum(-2, keepdim=True)
    means = weights.mT @ v / sums.mT
    return (q @ projection + largest + sums.log()).softmax(-1) @ means
