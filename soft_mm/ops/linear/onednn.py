"""The linear layer by oneDNN."""

import torch
from torch import Tensor, nn

WORTHWHILE = 2**18  # multiply-adds from which oneDNN is faster, in spite of its longer call


def supports(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN computes this layer, and does so in less time than ``F.linear``.

    False where something other than the result counts: compilers, tracers and modes that count or
    replace operators get PyTorch's.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and x.device.type == 'cpu'
        and x.ndim > 1
        and x.numel() * weight.shape[0] >= WORTHWHILE
        and all(
            type(t) in (Tensor, nn.Parameter) and t.dtype == torch.float32
            for t in (x, weight, *(() if bias is None else (bias,)))
        )
        and torch.backends.mkldnn.is_available()
        and torch._C._get_mkldnn_enabled()
        and not torch.is_autocast_enabled('cpu')
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
    )


class Linear(torch.autograd.Function):
    """``x (..., C)``, weight ``(E, C)``, bias ``(E,)`` or None -> ``(..., E)``."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'none', [], '')

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        from . import linear, weight_gradient

        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        tokens = grad.flatten(0, -2)
        return (
            linear(grad, weight.T) if needs_x else None,
            weight_gradient(tokens, x.flatten(0, -2)) if needs_weight else None,
            tokens.sum(0) if needs_bias else None,
        )
