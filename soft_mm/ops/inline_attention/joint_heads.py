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


def joint_heads_attention(qkv: Tensor, num_heads: int, num_tokens: int | Tensor) -> Tensor:
    """:func:`soft_mm.ops.inline_attention` of q, k and v ``(B, N, 3·C)`` -> ``(B, N, C)``.

    ``num_tokens``, the number of tokens that are not padding, is one or ``(B, 1, 1)``.
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
    def forward(ctx, qkv: Tensor, num_heads: int, num_tokens: int | Tensor) -> Tensor:
        q, k, v = qkv.chunk(3, -1)
        scale = (q.shape[-1] // num_heads) ** -0.5
        k_mean, v_mean = (x.sum(1, keepdim=True, dtype=torch.float32) / num_tokens for x in (k, v))
        covariance = _product(k.mT, v) / num_tokens - k_mean.mT * v_mean
        covariance = _cut(scale * covariance, num_heads).to(qkv.dtype)
        ctx.save_for_backward(qkv, covariance, k_mean, v_mean)
        ctx.num_heads, ctx.num_tokens, ctx.scale = num_heads, num_tokens, scale / num_tokens
        return torch.baddbmm(v_mean.to(qkv.dtype), q, covariance)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, covariance, k_mean, v_mean = ctx.saved_tensors
        q, k, v = qkv.chunk(3, -1)
        exact = _cut(ctx.scale * _product(q.mT, grad), ctx.num_heads)  # gradient of the covariance
        grad_mean = grad.sum(1, keepdim=True, dtype=torch.float32) / ctx.num_tokens
        rounded = exact.to(qkv.dtype)
        out = torch.empty_like(qkv)
        grad_q, grad_k, grad_v = out.chunk(3, -1)
        torch.bmm(grad, covariance.mT, out=grad_q)
        k_offset, v_offset = -v_mean @ exact.mT, grad_mean - k_mean @ exact
        torch.baddbmm(k_offset.to(qkv.dtype), v, rounded.mT, out=grad_k)
        torch.baddbmm(v_offset.to(qkv.dtype), k, rounded, out=grad_v)
        return out, None, None
