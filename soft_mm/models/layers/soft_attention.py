import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import gaussian_kernel, newton_inverse
from ...ops.precision import at_least_fp32
from .heads import check_heads


class SOFTAttention(nn.Module):
    """Softmax-free attention with a Gaussian kernel and landmarks.

    SOFT (arXiv 2110.11945, §3.2) and, with ``sym_norm``, the symmetrically normalised SOFT-Norm
    (arXiv 2207.03341, §3.3); ``nystrom_attention`` below has both formulas.

    Args:
        dims (int): channels of the tokens.
        num_heads (int): number of heads; divides ``dims``.
        ratio (int): kernel and stride of the convolution that makes the landmarks.
        kernel_size (int): of the depth-wise convolution of the values; odd.
        sym_norm (bool): SOFT-Norm's symmetric normalisation.
        alpha_scope (str): 'matrix' scales the start of Newton's iteration for each matrix by
            itself; 'batch' takes one scale for all images and heads, as SOFT-Norm was released.
    """

    def __init__(self, dims: int, num_heads: int, ratio: int, kernel_size: int,
                 sym_norm: bool = False, alpha_scope: str = 'matrix') -> None:
        super().__init__()
        if alpha_scope not in ('matrix', 'batch'):
            raise ValueError(f"alpha_scope must be 'matrix' or 'batch', got {alpha_scope!r}")
        check_heads(dims, num_heads)
        width = dims // num_heads
        self.num_heads = num_heads
        self.ratio = ratio
        self.sym_norm = sym_norm
        self.alpha_scope = alpha_scope
        self.q = nn.Linear(dims, dims)
        self.v = nn.Linear(dims, dims)
        self.landmark_conv = nn.Conv2d(width, width, ratio, stride=ratio, bias=False)
        self.landmark_norm = nn.LayerNorm(width)
        self.dwconv = nn.Conv2d(num_heads, num_heads, kernel_size, padding=kernel_size // 2,
                                groups=num_heads, bias=False)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """``(B, N, C)`` and the map's size ``(H, W)``, ``H·W = N`` -> ``(B, N, C)``."""
        q, v = (self._split_heads(linear(x)) for linear in (self.q, self.v))
        q = q * q.shape[-1] ** -0.25
        out = nystrom_attention(q, v, self._landmarks(q, hw), self.sym_norm, self.alpha_scope)
        out = out.to(v.dtype) + self._local(v, hw)
        return self.proj(out.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        """``(B, N, C)`` -> ``(B, h, N, d)``."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _landmarks(self, q: Tensor, hw: tuple[int, int]) -> Tensor:
        """Each head of q as a map of its own: ``(B, h, N, d)`` -> ``(B, h, m, d)``."""
        if min(hw) < self.ratio:
            raise ValueError(f'a {hw[0]}×{hw[1]} map has no landmark: the landmark convolution '
                             f'needs at least {self.ratio}×{self.ratio}')
        maps = q.flatten(0, 1).mT.unflatten(-1, hw)
        tokens = self.landmark_conv(maps).flatten(2).mT
        return F.gelu(self.landmark_norm(tokens)).unflatten(0, q.shape[:2])

    def _local(self, v: Tensor, hw: tuple[int, int]) -> Tensor:
        """One filter a head, shared by its d channels: ``(B, h, N, d)`` -> ``(B, h, N, d)``."""
        maps = v.permute(0, 3, 1, 2).flatten(0, 1).unflatten(-1, hw)
        return self.dwconv(maps).flatten(2).unflatten(0, (-1, v.shape[-1])).permute(0, 2, 3, 1)


@at_least_fp32
def nystrom_attention(q: Tensor, v: Tensor, landmarks: Tensor, sym_norm: bool,
                      alpha_scope: str) -> Tensor:
    """``K1 · inverse(K2) · (K1ᵀ v)`` with Gaussian ``K1`` (N, m) and ``K2`` (m, m).

    q, v ``(B, h, N, d)``, landmarks ``(B, h, m, d)`` -> ``(B, h, N, d)`` in fp32 or better.
    """
    k1 = gaussian_kernel(q, landmarks)
    k2 = gaussian_kernel(landmarks, landmarks)
    values = k1.mT @ v
    row_sums = k2.sum(-1, keepdim=True)
    norm = row_sums.detach().amax(-2, keepdim=True)  # ‖K2‖₁: K2 is symmetric and positive
    if alpha_scope == 'batch':
        norm = norm.amax()
    if sym_norm:
        inverse = newton_inverse(k2, _halved_alpha(k2.detach(), 2 / norm.square(), alpha_scope))
        scale = row_sums.rsqrt()
        values = scale * (inverse @ (scale * values))
    else:
        p = k2 + 0.01 * torch.eye(k2.shape[-1], dtype=k2.dtype, device=k2.device)
        values = newton_inverse(p, 0.9 * 2 / norm.square()) @ values
    return k1 @ values


def _halved_alpha(p: Tensor, alpha: Tensor, alpha_scope: str) -> Tensor:
    """Halve ``alpha``, at most ten times, while a column of ``|I − αP²|`` sums to over 1.01.

    P ``(..., m, m)`` is symmetric and its entries are not negative, so the sums need P² only on
    its diagonal and times a vector of ones: O(m²).
    """
    columns = p @ p.sum(-1, keepdim=True)
    diagonal = p.square().sum(-1, keepdim=True)
    dims = (-2, -1) if alpha_scope == 'matrix' else tuple(range(p.ndim))
    for _ in range(10):
        sums = (1 - alpha * diagonal).abs() + alpha * (columns - diagonal)
        # At αλ² = 2, which K2 = I reaches, the sums pass but the iteration would never converge.
        too_large = (sums > 1.01) | (alpha * diagonal > 1.9)
        alpha = torch.where(too_large.amax(dims, keepdim=True), alpha / 2, alpha)
    return alpha
