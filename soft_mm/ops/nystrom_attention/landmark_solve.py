"""The op ``soft_mm::landmark_solve``: all that the solver 'newton' computes from the landmarks."""

import torch
from torch import Tensor

from ..backend import runs_triton
from ..gaussian_kernel import gaussian_kernel
from ..newton_inverse.implicit import iterate
from ..newton_solve import rational
from ..precision import at_least_fp32
from .scale import newton_start

ITERATIONS = 20


@torch.library.custom_op('soft_mm::landmark_solve', mutates_args=())
def landmark_solve(
    landmarks: Tensor, v: Tensor, sym_norm: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Apply the inverse of the kernel matrix of landmarks ``(B, h, m, d)`` to v ``(B, h, m, e)``.

    Returns:
        The result ``(B, h, m, e)`` and, for the backward pass, P ``(B, h, m, m)``, the row sums of K2
        ``(B, h, m, 1)``, the inverse of P or, for large m, I − ρ ``(B, h, m, m)``, and √s
        ``(B, h, 1, 1)``.
    """
    if _fuses(landmarks, v, backend):
        from . import triton_kernels

        return triton_kernels.landmark_solve(landmarks, v, sym_norm)
    return _landmark_solve(landmarks, v, sym_norm, backend)


@at_least_fp32
def _landmark_solve(landmarks: Tensor, v: Tensor, sym_norm: bool, backend: str):
    k2 = gaussian_kernel(landmarks, landmarks, backend)
    sums = k2.sum(-1, keepdim=True)
    p, alpha = newton_start(k2, sums, sym_norm, 'matrix', backend)
    root = alpha.sqrt() * 2.0 ** (ITERATIONS / 2)
    factor = sums.rsqrt() if sym_norm else 1
    if _is_rational(p, fused=False):
        out, matrix = rational.forward(p, factor * v, root, False)
    else:
        matrix = iterate(p, alpha, ITERATIONS, p.device.type == 'cpu', backend)
        out = matrix @ (factor * v)
    return factor * out, p, sums, matrix, root


@landmark_solve.register_fake
def _(
    landmarks: Tensor, v: Tensor, sym_norm: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return empty_results(landmarks, v)


def empty_results(landmarks: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Uninitialised results of the op, in fp32 or better."""
    *batch, m, _ = landmarks.shape
    dtype = torch.promote_types(torch.promote_types(landmarks.dtype, v.dtype), torch.float32)
    shapes = v.shape, (*batch, m, m), (*batch, m, 1), (*batch, m, m), (*batch, 1, 1)
    return tuple(v.new_empty(shape, dtype=dtype) for shape in shapes)


@torch.library.custom_op('soft_mm::landmark_solve_backward', mutates_args=())
@at_least_fp32
def _gradients(
    grad: Tensor,
    landmarks: Tensor,
    v: Tensor,
    out: Tensor,
    p: Tensor,
    sums: Tensor,
    matrix: Tensor,
    root: Tensor,
    sym_norm: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of the landmarks and of v, in fp32 or better; README.md has the formulas."""
    fuses = _fuses(landmarks, v, backend)
    factor = sums.rsqrt() if sym_norm else 1
    if _is_rational(p, fuses):
        grad_v = rational.backward(factor * grad, p, matrix, root, fuses)
    else:
        grad_v = matrix @ (factor * grad)
    grad_p = -grad_v @ (out / factor).mT
    if sym_norm:
        grad_v = factor * grad_v
        grad_p -= 0.5 / sums * (grad * out + grad_v * v).sum(-1, keepdim=True)
    # As in gaussian_kernel, of which both arguments are the landmarks.
    weights = (grad_p + grad_p.mT) * p
    tokens = landmarks - landmarks.mean(-2, keepdim=True)
    return weights @ tokens - weights.sum(-1, keepdim=True) * tokens, grad_v


@_gradients.register_fake
def _(grad: Tensor, landmarks: Tensor, v: Tensor, out: Tensor, *_) -> tuple[Tensor, Tensor]:
    return tuple(x.new_empty(x.shape, dtype=out.dtype) for x in (landmarks, v))


def _fuses(landmarks: Tensor, v: Tensor, backend: str) -> bool:
    if backend != 'triton' or not runs_triton('nystrom_attention', v.device):
        return False
    from . import triton_kernels

    return triton_kernels.supports_landmarks(landmarks, v)


def _is_rational(p: Tensor, fused: bool) -> bool:
    return rational.is_worthwhile(p.shape[-1], ITERATIONS, fused)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.sym_norm, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx, grad: Tensor, *_):
    tensors = ctx.saved_tensors  # which activation checkpointing hands out once
    grads = _gradients(grad, *tensors, ctx.sym_norm, ctx.backend)
    return *(g.to(x.dtype) for g, x in zip(grads, tensors)), None, None


landmark_solve.register_autograd(_backward, setup_context=_setup_context)
