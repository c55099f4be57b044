"""The attention in half precision by products of all heads together, which read q, k and v in place.

PyTorch's products take the tokens of an image at their own strides, but copy those of its heads.
"""

import torch
from torch import Tensor


def supports(qkv: Tensor) -> bool:
    """Whether these tokens are in half precision on a GPU, and PyTorch's products return fp32."""
    return (
        qkv.device.type == 'cuda'
        and qkv.dtype in (torch.bfloat16, torch.float16)
        and torch.__version__ >= (2, 8)
        and torch.version.hip is None
    )


def joint_heads_attention(qkv: Tensor, num_heads: int, num_tokens: Tensor | None) -> Tensor:
    """:func:`soft_mm.ops.inline_attention` of q, k and v ``(B, N, 3·C)`` -> ``(B, N, C)``.

    ``num_tokens`` ``(B, 1, 1)`` is the number of tokens that are not padding, by default N.
    """
    return _Attention.apply(qkv, num_heads, num_tokens)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Product of half-precision matrices in fp32."""
    if a.device.type == 'cuda':
        return torch.bmm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()  # no other device has it


def _cut(matrix: Tensor, num_heads: int) -> Tensor:
    """Set to 0 what is in no head's block of matrices ``(B, C, C)``."""
    head = torch.arange(matrix.shape[-1], device=matrix.device) * num_heads // matrix.shape[-1]
    return matrix.masked_fill(head[:, None] != head, 0)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv: Tensor, num_heads: int, num_tokens: Tensor | None) -> Tensor:
        q, k, v = qkv.chunk(3, -1)
        n = qkv.shape[1] if num_tokens is None else num_tokens
        k_mean, v_mean = (x.sum(1, keepdim=True, dtype=torch.float32) / n for x in (k, v))
        covariance = (q.shape[-1] // num_heads) ** -0.5 * (
            _product(k.mT, v) / n - k_mean.mT * v_mean
        )
        covariance = _cut(covariance, num_heads).to(qkv.dtype)
        ctx.save_for_backward(qkv, covariance, k_mean, v_mean, num_tokens)
        ctx.num_heads = num_heads
        return torch.baddbmm(v_mean.to(qkv.dtype), q, covariance)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _gradient(grad, *ctx.saved_tensors, ctx.num_heads), None, None


@torch.library.custom_op('soft_mm::joint_heads_backward', mutates_args=())
def _gradient(
    grad: Tensor,
    qkv: Tensor,
    covariance: Tensor,
    k_mean: Tensor,
    v_mean: Tensor,
    num_tokens: Tensor | None,
    num_heads: int,
) -> Tensor:
    """Gradient of q, k and v ``(B, N, 3·C)``, each written where it belongs."""
    q, k, v = qkv.chunk(3, -1)
    n = qkv.shape[1] if num_tokens is None else num_tokens
    scale = (q.shape[-1] // num_heads) ** -0.5 / n
    exact = _cut(scale * _product(q.mT, grad), num_heads)  # gradient of the covariance
    rounded, grad_mean = exact.to(qkv.dtype), grad.sum(1, keepdim=True, dtype=torch.float32) / n
    k_offset, v_offset = -v_mean @ exact.mT, grad_mean - k_mean @ exact
    out = qkv.new_empty(qkv.shape)
    grad_q, grad_k, grad_v = out.chunk(3, -1)
    torch.bmm(grad, covariance.mT, out=grad_q)
    torch.baddbmm(k_offset.to(qkv.dtype), v, rounded.mT, out=grad_k)
    torch.baddbmm(v_offset.to(qkv.dtype), k, rounded, out=grad_v)
    return out


@_gradient.register_fake
def _(
    grad: Tensor,
    qkv: Tensor,
    covariance: Tensor,
    k_mean: Tensor,
    v_mean: Tensor,
    num_tokens: Tensor | None,
    num_heads: int,
) -> Tensor:
    return qkv.new_empty(qkv.shape)
