"""Compare speed and memory of the implementations of every op.

    ops.py                          print a table of all ops on this machine
    ops.py --out folder/name        also write folder/name.md and folder/name.json
    ops.py --device cuda --dtype bfloat16 --sizes 800x1344 --only nystrom_attention

The shapes are those of the first three stages of SOFT-Norm-Tiny and InLine-PVT-Tiny. Next to the
time, the table shows the minimum memory traffic and flops of the op per second, relative to the copy
bandwidth and matrix product rate of the device, which are measured first. The reference uses plain
PyTorch operators and full matrices. The benchmark fails if the output of an implementation differs
from the reference.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from soft_mm.analysis.benchmark import (
    add_device,
    add_out,
    machine,
    milliseconds,
    peak_memory,
    report,
    size_of,
)
from soft_mm.ops import (
    dynamic_conv,
    gaussian_kernel,
    gaussian_product,
    linear,
    newton_inverse,
    nystrom_attention,
)
from soft_mm.ops.backend import HAS_TRITON, INTERPRETED
from soft_mm.ops.dynamic_conv.reference import dynamic_conv as shifted_conv
from soft_mm.ops.extension import missing
from soft_mm.ops.newton_inverse.reference import newton_inverse as plain_inverse
from soft_mm.utils import add_quiet, progress

REFERENCE = 'reference'
HEADS, RATIOS, WIDTH = (2, 4, 10), (8, 4, 2), 32
MODES = ('forward', 'training step')
MIN_TOTAL_TIME = 300.0  # milliseconds that the runs of an implementation take in total, at least
# Largest difference from the reference, relative to its largest value.
AGREE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Stage:
    """Shapes of the attention in one stage of a backbone."""

    batch: int
    heads: int
    hw: tuple[int, int]
    landmarks: int

    @classmethod
    def of(cls, index: int, size: tuple[int, int], batch: int) -> 'Stage':
        hw = tuple(side // (4 << index) for side in size)
        return cls(batch, HEADS[index], hw, (hw[0] // RATIOS[index]) * (hw[1] // RATIOS[index]))

    @property
    def tokens(self) -> int:
        return self.hw[0] * self.hw[1]

    @property
    def matrices(self) -> int:
        return self.batch * self.heads

    def random(self, *shape: int) -> Tensor:
        return torch.randn(self.batch, self.heads, *shape)

    def q(self) -> Tensor:
        return self.random(self.tokens, WIDTH) * WIDTH**-0.25

    def marks(self) -> Tensor:
        return self.random(self.landmarks, WIDTH) * WIDTH**-0.25

    def v(self) -> Tensor:
        return self.random(self.tokens, WIDTH)


def plain_kernel(q: Tensor, k: Tensor) -> Tensor:
    norms = q.square().sum(-1, keepdim=True) + k.square().sum(-1).unsqueeze(-2)
    return (q @ k.mT - norms / 2).clamp(max=0).exp()


def plain_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return plain_kernel(q, k) @ v


def landmark_matrix(stage: Stage) -> Tensor:
    marks = stage.marks()
    return plain_kernel(marks, marks) + 0.1 * torch.eye(stage.landmarks)


def scale(p: Tensor) -> Tensor:
    return 1.8 / p.detach().sum(-1).amax(-1)[..., None, None].square()


@dataclass(frozen=True)
class Op:
    """An op to measure.

    Attributes:
        inputs: makes the inputs for a stage.
        reference: implementation with plain operators, called with the stage and the inputs.
        ours: our op, called with the stage, the name of a backend and the inputs.
        backends: names of the backends to measure.
        work: minimum work for a stage: numbers read and written and flops of a forward pass, then
            those that a training step adds.
        applies: whether the op is measured for a stage.
    """

    inputs: Callable[[Stage], list[Tensor]]
    reference: Callable[..., Tensor]
    ours: Callable[..., Tensor]
    backends: tuple[str, ...]
    work: Callable[[Stage], tuple[int, int, int, int]]
    applies: Callable[[Stage], bool] = lambda stage: True


def _kernel_work(s: Stage) -> tuple[int, ...]:
    matrix, tokens = s.tokens * s.landmarks, (s.tokens + s.landmarks) * WIDTH
    return tuple(
        s.matrices * n
        for n in (tokens + matrix, 2 * matrix * WIDTH, 2 * tokens + 2 * matrix, 4 * matrix * WIDTH)
    )


def _product_work(s: Stage) -> tuple[int, ...]:
    matrix, tokens = s.tokens * s.landmarks, (s.tokens + s.landmarks) * WIDTH
    return tuple(
        s.matrices * n for n in (2 * tokens, 4 * matrix * WIDTH, 4 * tokens, 10 * matrix * WIDTH)
    )


def _attention_work(s: Stage) -> tuple[int, ...]:
    return tuple(2 * n for n in _product_work(s))


def _inverse_work(s: Stage) -> tuple[int, ...]:
    m = s.landmarks
    return tuple(s.matrices * n for n in (2 * m**2, 80 * m**3, 3 * m**2, 4 * m**3))


def _conv_work(s: Stage) -> tuple[int, ...]:
    return tuple(s.matrices * WIDTH * s.tokens * n for n in (2, 18, 3, 36))


def _linear_work(s: Stage) -> tuple[int, ...]:
    dims = s.heads * WIDTH
    tokens, weight = s.batch * s.tokens * dims, 4 * dims**2
    flops = 2 * s.batch * s.tokens * weight
    return 5 * tokens + weight, flops, 6 * tokens + 2 * weight, 2 * flops


OPS = {
    'gaussian_kernel': Op(
        lambda s: [s.q(), s.marks()],
        lambda s, *x: plain_kernel(*x),
        lambda s, backend, *x: gaussian_kernel(*x, backend),
        ('torch', 'extension'),
        _kernel_work,
    ),
    'gaussian_product': Op(
        lambda s: [s.marks(), s.q(), s.v()],
        lambda s, *x: plain_product(*x),
        lambda s, backend, *x: gaussian_product(*x, backend),
        ('torch', 'triton'),
        _product_work,
    ),
    'nystrom_attention': Op(
        lambda s: [s.q(), s.v(), s.marks()],
        lambda s, *x: nystrom_attention(*x, sym_norm=True, backend=REFERENCE),
        lambda s, backend, *x: nystrom_attention(*x, sym_norm=True, backend=backend),
        ('torch', 'extension', 'triton'),
        _attention_work,
    ),
    'newton_inverse': Op(
        lambda s: [landmark_matrix(s)],
        lambda s, p: plain_inverse(p.float(), scale(p.float())),
        lambda s, backend, p: newton_inverse(p, scale(p), 20, backend == 'triton', backend),
        ('torch', 'triton'),
        _inverse_work,
        lambda s: s.landmarks <= 64,
    ),
    'dynamic_conv': Op(
        lambda s: [
            torch.randn(s.batch, s.tokens, s.heads * WIDTH),
            torch.randn(s.batch, s.heads * WIDTH, 3, 3),
        ],
        lambda s, v, f: shifted_conv(v, f, s.hw),
        lambda s, backend, v, f: dynamic_conv(v, f, s.hw, backend=backend),
        ('torch', 'extension', 'triton'),
        _conv_work,
    ),
    'linear': Op(
        lambda s: [
            torch.randn(s.batch, s.tokens, s.heads * WIDTH),
            torch.randn(4 * s.heads * WIDTH, s.heads * WIDTH),
            torch.randn(4 * s.heads * WIDTH),
        ],
        lambda s, *x: F.linear(*x),
        lambda s, backend, *x: linear(*x, backend),
        ('torch',),
        _linear_work,
    ),
}


@dataclass
class Measured:
    """Results of one implementation: ms of each call, MiB above the inputs, shares of the device."""

    op: str
    size: tuple[int, int]
    stage: int
    shape: tuple[int, int, int, int]  # B, h, N, m
    mode: str
    way: str  # name of the implementation; a key of the result files
    times: list[float] = field(default_factory=list)
    memory: float = 0.0
    difference: float | None = None
    of_copy: float = 0.0
    of_matmul: float = 0.0

    @property
    def time(self) -> float:
        return statistics.median(self.times)


def implementations_of(name: str, stage: Stage, device: str) -> dict[str, Callable]:
    """The implementations of an op that this machine can run, by name."""
    op = OPS[name]
    available = {
        'torch': True,
        'triton': HAS_TRITON and device == 'cuda' or INTERPRETED,
        'extension': missing(device) is None and (name, device) != ('dynamic_conv', 'cuda'),
    }
    implementations = {
        REFERENCE: lambda *x: op.reference(stage, *x),
        'torch.compile': torch.compile(lambda *x: op.reference(stage, *x), dynamic=False),
    }
    implementations |= {
        backend: lambda *x, backend=backend: op.ours(stage, backend, *x)
        for backend in op.backends
        if available[backend]
    }
    if name == 'nystrom_attention':
        implementations['softmax attention'] = lambda q, v, _: F.scaled_dot_product_attention(
            q, q, v
        )
    return implementations


def rates(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """Numbers that a copy reads and writes, and flops of a matrix product, per millisecond."""
    long = torch.empty(2**28 if device == 'cuda' else 2**25, dtype=dtype, device=device)
    other, side = torch.ones_like(long), 8192 if device == 'cuda' else 2048
    square = torch.randn(side, side, dtype=dtype, device=device)
    return (
        2 * long.numel() / fastest(lambda: long.copy_(other), device),
        2 * side**3 / fastest(lambda: square @ square, device),
    )


def fastest(step: Callable, device: str) -> float:
    return min(milliseconds(step, device) for _ in range(10))


def measure(
    name: str, stage: Stage, device: str, dtype: torch.dtype, speed: tuple[float, float]
) -> list[dict]:
    """Measure every implementation of an op for a stage in both modes."""
    torch.manual_seed(0)
    inputs = [x.to(device, dtype).requires_grad_() for x in OPS[name].inputs(stage)]
    with torch.no_grad():
        expected = OPS[name].reference(stage, *(x.float() for x in inputs))
    work, results = OPS[name].work(stage), []
    for mode in MODES:
        numbers, flops = work[:2] if mode == 'forward' else (work[0] + work[2], work[1] + work[3])
        for implementation, fn in implementations_of(name, stage, device).items():

            def step(fn=fn, mode=mode) -> Tensor:
                with torch.set_grad_enabled(mode != 'forward'):
                    out = fn(*inputs)
                if mode != 'forward':
                    torch.autograd.grad(out, inputs, torch.ones_like(out), allow_unused=True)
                return out.detach()

            difference = None
            out = step()  # warm up: implementations are compiled in their first call
            if implementation != 'softmax attention':
                difference = ((out - expected).abs().max() / expected.abs().max()).item()
                if not difference <= AGREE[dtype]:
                    raise SystemExit(
                        f'{name} of {stage}: the output of {implementation!r} differs by '
                        f'{difference:.1e} from the reference, allowed is {AGREE[dtype]}; '
                        'its time is not reported'
                    )
            del out
            memory, times = peak_memory(step, device), []
            while len(times) < 3 or sum(times) < MIN_TOTAL_TIME:
                times.append(milliseconds(step, device))
            time = statistics.median(times)
            results.append(
                dict(
                    mode=mode,
                    way=implementation,
                    times=times,
                    memory=memory,
                    difference=difference,
                    of_copy=numbers / time / speed[0],
                    of_matmul=flops / time / speed[1],
                )
            )
    return results


def table(results: list[Measured]) -> str:
    """A Markdown table of all results."""
    found = {(r.op, r.size, r.stage, r.mode, r.way): r.time for r in results}
    lines = [
        '| op | image | stage | B, h, N, m | mode | implementation | time (ms) | fastest–slowest | '
        'time: reference = 1 | memory (MiB) | of copy bandwidth | of matmul rate | '
        'difference |',
        '|---' * 13 + '|',
    ]
    for r in results:
        reference = found[r.op, r.size, r.stage, r.mode, REFERENCE]
        cells = [
            r.op,
            f'{r.size[0]}×{r.size[1]}',
            r.stage,
            ', '.join(map(str, r.shape)),
            r.mode,
            r.way,
            f'{r.time:.3g}',
            f'{min(r.times):.3g}–{max(r.times):.3g}',
            f'{r.time / reference:.2f}',
            f'{r.memory:.0f}',
            f'{r.of_copy:.0%}',
            f'{r.of_matmul:.0%}',
            '–' if r.difference is None else f'{r.difference:.0e}',
        ]
        lines.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join(lines)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_device(parser)
    parser.add_argument(
        '--dtype',
        choices=[str(d).split('.')[1] for d in AGREE],
        default='float32',
        help='dtype of the inputs (default: float32)',
    )
    parser.add_argument(
        '--sizes',
        type=size_of,
        nargs='+',
        metavar='HxW',
        default=[(224, 224), (512, 512), (800, 1344)],
        help='image sizes in pixels (default: 224x224 512x512 800x1344)',
    )
    parser.add_argument(
        '--stages',
        type=int,
        nargs='+',
        choices=[1, 2, 3],
        default=[1, 2, 3],
        help='stages of the backbone whose shapes to measure (default: all)',
    )
    parser.add_argument(
        '--batch',
        type=int,
        help='number of images (default: as many pixels as 128 images of 224x224 on a GPU, 1 image '
        'on a CPU)',
    )
    parser.add_argument(
        '--only',
        nargs='+',
        choices=list(OPS),
        default=list(OPS),
        help='ops to measure (default: all)',
    )
    add_out(parser, plot=False)
    add_quiet(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    dtype, results = getattr(torch, args.dtype), []
    speed = rates(args.device, dtype)
    cases = list(product(args.only, args.sizes, args.stages))
    with progress(args.quiet) as bar:
        for name, size, index in bar.track(cases, description='measure'):
            images = 128 * 224**2 // (size[0] * size[1]) if args.device == 'cuda' else 1
            stage = Stage.of(index - 1, size, args.batch or max(1, images))
            if not OPS[name].applies(stage):
                continue
            torch.compiler.reset()
            shape = stage.batch, stage.heads, stage.tokens, stage.landmarks
            results += [
                Measured(name, size, index, shape, **found)
                for found in measure(name, stage, args.device, dtype, speed)
            ]
    conditions = (
        f'{machine(args.device)}, {args.dtype}; copy '
        f'{speed[0] * dtype.itemsize / 1e6:.3g} GB/s, matrix product '
        f'{speed[1] / 1e9:.3g} TFLOP/s'
    )
    report(conditions, table(results), results, args.out)


if __name__ == '__main__':
    main()
