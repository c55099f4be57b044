"""Memory traffic and errors of the layers under autocast, as they run on a GPU."""

from collections import defaultdict
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from soft_mm import InLinePVT
from soft_mm.models.backbones.soft import SOFTBlock
from soft_mm.models.layers import InLineAttention, SOFTAttention, TransformerBlock
from soft_mm.ops import inline_projected_attention, set_backend
from soft_mm.ops.backend import HAS_TRITON, INTERPRETED
from soft_mm.ops.shapes import split_heads
from soft_mm.ops.windows import Windows

pytestmark = pytest.mark.skipif(
    not (HAS_TRITON and INTERPRETED), reason='only the interpreter runs Triton kernels on a CPU'
)
HW, DIMS, HEADS = (200, 336), 64, 2  # the first stage of a PVT on an image of 800×1344
VIEWS = {'device', 'view', '_unsafe_view', 'expand', 'unsqueeze', 'squeeze', 'transpose', 't'}
VIEWS |= {'permute', 'slice', 'select', 'split', 'split_with_sizes', 'detach', 'alias', 'unbind'}
VIEWS |= {'promote_types'}  # runs on the host, like 'device'
# Tokens that a fused op reads a second time, in bytes a channel of bf16: v, and grad and v.
SECOND_READS = {'inline_attention': 2, 'inline_attention_backward': 4}


class Traffic(TorchDispatchMode):
    """Count the bytes that a layer reads and writes, for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in VIEWS and 'empty' not in name:
            leaves = tree_leaves((args, kwargs, out))
            tensors = {id(x): x for x in leaves if isinstance(x, Tensor)}.values()
            channels = HW[0] * HW[1] * DIMS
            self.bytes += sum(x.numel() * x.element_size() for x in tensors) / channels
            self.bytes += SECOND_READS.get(name, 0)
        return out


@pytest.mark.parametrize(
    ('kwargs', 'forward_limit', 'backward_limit'),
    [({}, 45, 100), (dict(window_size=56, shifted=True), 45, 100)],
)
def test_bytes_of_an_inline_layer(kwargs, forward_limit, backward_limit):
    """Bytes a channel of a token. By hand, fp32 tokens: mean 4, cast 6, projections 8 and 4,
    attention 10. Windows add what the mean of their rows takes."""
    with FakeTensorMode(), set_backend('triton'):
        layer = InLineAttention(DIMS, HEADS, **kwargs)
        x = torch.randn(1, HW[0] * HW[1], DIMS, requires_grad=True)
        with Traffic() as forward, torch.autocast('cpu', torch.bfloat16):
            out = layer(x, HW)
        with Traffic() as backward:
            torch.autograd.grad(out, [x, *layer.parameters()], torch.empty_like(out))
    assert 30 < forward.bytes < forward_limit
    assert 70 < backward.bytes < backward_limit


def test_bytes_of_attention_without_kernels():
    """In half precision on a GPU. By hand: two sums 4, kᵀv 4, the output 4. Nothing is copied."""
    with FakeTensorMode(), set_backend('torch'):
        shape = 1, HW[0] * HW[1], 3 * DIMS
        qkv = torch.empty(shape, device='cuda', dtype=torch.bfloat16)
        with Traffic() as traffic:
            inline_projected_attention(qkv, None, None, HEADS, Windows(HW, HW))
    assert 12 <= traffic.bytes < 13


OPS = ('dynamic_conv', 'gaussian_kernel', 'gaussian_product', 'inline_attention', 'newton_inverse')
OPS += ('newton_solve', 'nystrom_attention')


class Launches(TorchDispatchMode):
    """Name what a GPU launches: PyTorch's operators that are no views, one each, and Triton's kernels.

    Of our ops the bodies run, on tensors without data, with kernels that do nothing. What libraries
    launch within an operator is not seen, nor are the casts of autocast: all is in bf16.
    """

    def __init__(self, monkeypatch, *whole: str) -> None:
        super().__init__()
        self.names, self.whole = [], whole
        monkeypatch.setattr(torch.cuda, 'device_of', lambda x: nullcontext())
        for op in OPS:
            module = import_module(f'soft_mm.ops.{op}.triton_kernels')
            for name, value in list(vars(module).items()):
                if hasattr(value, 'fn') and hasattr(value, '__getitem__'):
                    launch = partial(self._launch, name)
                    monkeypatch.setattr(module, name, defaultdict(lambda launch=launch: launch))

    def _launch(self, name: str, *args, **options) -> None:
        self.names.append(name)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if func.namespace == 'soft_mm' and name not in self.whole:
            with self:
                return OPDEFS[func.name()]._init_fn(*args, **(kwargs or {}))
        if (
            func.namespace == 'aten'
        ):  # what calls other operators, such as flatten, launches nothing
            with self:
                out = func.decompose(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        if name not in VIEWS and 'empty' not in name:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def launches(block: nn.Module, hw: tuple[int, int], monkeypatch, *whole: str) -> list[str]:
    """Launches of a block on two images; the ops named ``whole`` count as one."""
    block = block.bfloat16()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        x = torch.empty(2, hw[0] * hw[1], DIMS, device='cuda', dtype=torch.bfloat16)
        block = block.to_empty(device='cuda')
        with monkeypatch.context() as patch, Launches(patch, *whole) as counted:
            block(x, hw)
    return counted.names


@pytest.mark.parametrize(('kwargs', 'limit'), [({}, 25), (dict(window_size=56, shifted=True), 43)])
def test_launches_of_an_inline_block(kwargs, limit, monkeypatch, overwritten_parameters):
    """Windows add 23 of a few numbers, for the matrices that average their rows and columns."""
    block = TransformerBlock(InLineAttention(DIMS, HEADS, **kwargs), DIMS)
    names = launches(block, HW, monkeypatch)
    assert {'_sum_keys_and_values', '_covariance', '_attend'} < {*names}
    assert len(names) < limit, names


@pytest.mark.parametrize('sym_norm', [False, True])
def test_launches_of_a_soft_block(sym_norm, monkeypatch, overwritten_parameters):
    """Every launch, with 49 landmarks as on an image of 224×224."""
    block = SOFTBlock(SOFTAttention(DIMS, HEADS, 8, 9, sym_norm=sym_norm), DIMS, 0)
    names = launches(block, (56, 56), monkeypatch)
    assert names.count('_sum_values') == 2 and names.count('_solve') == 1
    assert len(names) < 25, names


@pytest.mark.parametrize('sym_norm', [False, True])
def test_launches_of_a_soft_block_with_many_landmarks(
    sym_norm, monkeypatch, overwritten_parameters
):
    """From 65 landmarks on, the solver counts as one: its launches grow with their number."""
    names, every = (
        launches(
            SOFTBlock(SOFTAttention(DIMS, HEADS, 8, 9, sym_norm=sym_norm), DIMS, 0),
            HW,
            monkeypatch,
            *whole,
        )
        for whole in (('landmark_solve',), ())
    )
    assert len(names) < 25, names
    steps = -(-(25 * 42) // 64)
    assert len(every) <= len(names) + 42 + 2 * steps


@pytest.fixture
def photograph(shared) -> Tensor:
    """A photograph of 160×128 pixels, normalised."""
    path = sorted(Path(shared('data') / 'coco/val2017').glob('*.jpg'))[0]
    pixels = np.asarray(Image.open(path).convert('RGB').resize((160, 128)), dtype=np.float32)
    return torch.from_numpy((pixels - pixels.mean()) / pixels.std()).permute(2, 0, 1)[None]


def authors_inline(layer: InLineAttention, x: Tensor, hw: tuple[int, int]) -> Tensor:
    """InLine as the released models compute it: every step in the dtype that autocast gives it."""
    q, k, v = layer.qkv(x).chunk(3, -1)
    filters = layer._filters(x.mean(1))
    convolved = F.conv2d(
        v.mT.reshape(1, -1, *hw),
        filters.to(v.dtype).flatten(0, 1)[:, None],
        None,
        1,
        1,
        1,
        v.shape[2],
    )
    q, k, v = (split_heads(t, layer.num_heads) for t in (q, k, v))
    scale = q.shape[-1] ** -0.5
    key_value = (k.mT * (scale / k.shape[2]) ** 0.5) @ (v * (scale / k.shape[2]) ** 0.5)
    correction = 1 - scale * (q @ k.mean(2, keepdim=True).mT)
    out = q @ key_value + correction * v.mean(2, keepdim=True)
    return layer.proj(out.transpose(1, 2).flatten(2) + convolved.flatten(2).mT)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_errors_of_inline_on_a_photograph(dtype, photograph):
    """The output and every gradient are at least as exact as the authors' formulas."""
    torch.manual_seed(0)
    model = InLinePVT(arch='tiny', img_size=128)
    layer, inputs = model.stages[0].blocks[0].attn, []
    layer.register_forward_pre_hook(lambda _, args: inputs.append(args))
    model(photograph)
    (x, hw), *_ = inputs
    x = x.detach()

    def results(attend, kind: torch.dtype, autocast: bool) -> list[Tensor]:
        layer.to(kind)
        leaf = x.to(kind).requires_grad_()
        with torch.autocast('cpu', dtype, enabled=autocast):
            out = attend(leaf)
        grad = torch.randn(
            out.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        leaves = [leaf, *layer.parameters()]
        return [t.double() for t in (out, *torch.autograd.grad(out, leaves, grad.to(out.dtype)))]

    def ours(x: Tensor) -> Tensor:
        with set_backend('triton'):
            return layer(x, hw)

    def theirs(x: Tensor) -> Tensor:
        return authors_inline(layer, x, hw)

    outcomes = [results(ours, torch.float32, True), results(theirs, torch.float32, True)]
    outcomes.append(results(theirs, torch.float64, False))
    names = ['out', 'x', *(name for name, _ in layer.named_parameters())]
    for name, got, released, exact in zip(names, *outcomes):
        error, allowed = ((t - exact).norm() / exact.norm() for t in (got, released))
        # Both round what the projections write, which differs by chance.
        assert error <= 1.1 * allowed, name
