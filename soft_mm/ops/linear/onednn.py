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


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: str | None = None) -> Tensor:
    """x ``(..., C)``, weight ``(E, C)``, bias ``(E,)`` or None -> ``(..., E)``.

    ``gelu`` is the approximation of a GELU of the result, 'none' or 'tanh'.
    """
    # For a weight that is part of a larger matrix, oneDNN has only a reference implementation.
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        weight = weight.contiguous()
    activation = ('none', [], '') if gelu is None else ('gelu', [], gelu)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *activation)
