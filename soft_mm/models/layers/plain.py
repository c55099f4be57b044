"""The rule for passing the weights of a layer to an op instead of calling the layer."""

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)

from ...ops import linear

GLOBAL_HOOKS = (
    _global_forward_pre_hooks,
    _global_forward_hooks,
    _global_backward_pre_hooks,
    _global_backward_hooks,
)


def is_plain(*layers: nn.Module | None) -> bool:
    """Whether calling each layer does only what its type says, so that an op may replace the calls.

    An op that takes the weights of linear layers or convolutions bypasses what observes or changes
    their calls. Tools that prune, quantise, adapt, offload or count layers replace a layer, its
    ``forward`` or the type of its weight, or register hooks. Such a layer must be called.

    Args:
        *layers: the layers to replace; None stands for an optional layer that a model lacks.
    """
    return not any(GLOBAL_HOOKS) and all(
        layer is None
        # Not isinstance: subclasses compute something else, and parametrised layers are subclasses.
        or type(layer) in (nn.Linear, nn.Conv2d)
        # FSDP's weights are tensors. Quantised and distributed ones are of other types; fake ones
        # stand for any parameter.
        and type(layer.weight) in (Tensor, nn.Parameter, FakeTensor)
        and 'forward' not in layer.__dict__
        and not layer._forward_pre_hooks
        and not layer._forward_hooks
        and not layer._backward_pre_hooks
        and not layer._backward_hooks
        for layer in layers
    )


def depthwise_filters(conv: nn.Module, channels: int, side: int, like: Tensor) -> Tensor:
    """Filters ``(C, k, k)`` of a depth-wise convolution that pads with ``k // 2``.

    If the convolution is not plain, they are read from its response to an impulse.

    Args:
        conv: the convolution, or what has replaced it.
        channels: number C of channels.
        side: kernel size k, odd.
        like: tensor with the dtype and device of the convolution's inputs.
    """
    if is_plain(conv):
        return conv.weight.squeeze(1)
    zeros = like.new_zeros(1, channels, side, side)
    impulse = zeros.clone()
    impulse[..., side // 2, side // 2] = 1
    return (conv(impulse) - conv(zeros))[0].flip(-2, -1)


def apply_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer, if it is plain by :func:`soft_mm.ops.linear`."""
    return linear(x, layer.weight, layer.bias) if is_plain(layer) else layer(x)
