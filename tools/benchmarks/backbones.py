"""Compare speed and memory of our backbones with those of the OpenMMLab toolboxes.

    backbones.py                        print a table of all cases on this machine
    backbones.py --out folder/name      also write folder/name.md, name.json and the plot name.png
    backbones.py --device cuda --sizes 512x512 800x1344 --only SOFT-Norm PVT-Tiny

Every case runs in its own process and measures a forward pass or a training step (forward and
backward) on one random image. Cases that take less than a second are measured in several turns,
because the speed of a machine drifts. Memory is the peak of the first step, minus what the process
held before it. The benchmark fails if the feature maps of a backbone differ from those of the
reference backend with the same options.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from math import log
from pathlib import Path

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

import soft_mm  # noqa: F401
from soft_mm.analysis.benchmark import machine, milliseconds, peak_memory, report, size_of
from soft_mm.ops import set_backend
from soft_mm.utils import add_quiet, progress

STAGES = dict(out_indices=(0, 1, 2, 3))
NEWTON = dict(type='soft_mm.SOFT', arch='tiny', sym_norm=True)
PVT_TINY = 'PVT-Tiny'


@dataclass(frozen=True)
class Case:
    """A backbone to measure.

    Attributes:
        config: config of the backbone.
        package: package that registers it.
        backend: backend of our ops; None for the default of the device.
        baseline: case to compare its time with, in addition to PVT-Tiny.
        max_pixels: number of pixels of the largest image to measure.
    """

    config: dict
    package: str = 'soft_mm'
    backend: str | None = None
    baseline: str | None = None
    max_pixels: int = 1344 * 1344


SOFT_REFERENCE, INLINE_REFERENCE = 'SOFT-Norm-Tiny, reference', 'InLine-PVT-Tiny, reference'
CASES = {
    SOFT_REFERENCE: Case(NEWTON, backend='reference', max_pixels=800 * 1344),
    'SOFT-Norm-Tiny': Case(NEWTON, baseline=SOFT_REFERENCE),
    'SOFT-Norm-Tiny, exact solve': Case(dict(NEWTON, solver='ridge'), baseline=SOFT_REFERENCE),
    'SOFT-Norm-Tiny, 49 landmarks': Case(dict(NEWTON, num_landmarks=49), baseline=SOFT_REFERENCE),
    INLINE_REFERENCE: Case(dict(type='soft_mm.InLinePVT', arch='tiny'), backend='reference'),
    'InLine-PVT-Tiny': Case(dict(type='soft_mm.InLinePVT', arch='tiny'), baseline=INLINE_REFERENCE),
    'InLine-Swin-T': Case(dict(type='soft_mm.InLineSwin', arch='tiny')),
    PVT_TINY: Case(dict(type='mmdet.PyramidVisionTransformer', num_layers=[2, 2, 2, 2]), 'mmdet'),
    'PVTv2-B1': Case(
        dict(type='mmdet.PyramidVisionTransformerV2', embed_dims=64, num_layers=[2, 2, 2, 2]),
        'mmdet',
    ),
    'Swin-T': Case(dict(type='mmdet.SwinTransformer'), 'mmdet'),
    'ResNet-50': Case(dict(type='mmdet.ResNet', depth=50), 'mmdet'),
    'ConvNeXt-T': Case(dict(type='mmpretrain.ConvNeXt', arch='tiny', **STAGES), 'mmpretrain'),
}
MODES = ('forward', 'training step')
SINGLE_TURN_TIME = 1000.0  # milliseconds; slower cases are measured in one turn
AGREE = 1e-2  # largest difference from the reference, relative to the largest value of a map


@dataclass
class Measured:
    """Results of one case at one size: time of each run in ms, peak memory in MiB."""

    case: str
    size: tuple[int, int]
    mode: str
    times: list[float] = field(default_factory=list)
    memory: float = 0.0
    difference: float | None = None

    @property
    def time(self) -> float:
        return statistics.median(self.times)

    @property
    def tokens(self) -> float:
        """Number of tokens of the first stage's feature map."""
        return self.size[0] * self.size[1] / 16


def build(case: Case) -> nn.Module:
    if case.package != 'soft_mm':
        __import__(f'{case.package}.models')
    torch.manual_seed(0)
    model = MODELS.build(case.config)
    model.init_weights()
    return model


def measure(
    name: str, size: tuple[int, int], mode: str, device: str, repeats: int, seconds: float
) -> dict:
    """Measure one case in this process."""
    case = CASES[name]
    model = build(case).to(device)
    model.train(mode != 'forward')
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)

    def step(image: Tensor = image) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(mode != 'forward'):
            maps = model(image)
        if mode != 'forward':
            model.zero_grad()
            sum(m.square().mean() for m in maps).backward()
        return maps

    step(image[..., :64, :64])  # warm up: ops import modules in their first call
    model.zero_grad()
    memory = peak_memory(step, device)
    times = []
    while len(times) < repeats or sum(times) < 1e3 * seconds:
        times.append(milliseconds(step, device))
    result = Measured(name, size, mode, times, memory)
    if case.baseline and mode == 'forward':
        result.difference = difference(model, image, step())
    return vars(result)


def difference(model: nn.Module, image: Tensor, maps: tuple[Tensor, ...]) -> float:
    """Largest relative difference of all maps from the reference backend, same options."""
    with set_backend('reference'), torch.no_grad():
        return max(
            ((m - r).abs().max() / r.abs().max()).item()
            for m, r in zip(maps, model(image), strict=True)
        )


def run_all(args: argparse.Namespace) -> list[Measured]:
    """Measure all cases at every size and in every mode."""
    cases = {
        size: [
            name
            for name, case in CASES.items()
            if size[0] * size[1] <= case.max_pixels
            and (not args.only or any(part in name for part in args.only))
        ]
        for size in args.sizes
    }
    results = []
    with progress(args.quiet) as bar:
        total = len(args.modes) * sum(map(len, cases.values()))
        task = bar.add_task('', total=total)

        def run(name: str, size: tuple[int, int], mode: str) -> Measured:
            description = f'{name}, {size[0]}×{size[1]}, {mode}'
            bar.update(task, description=description)
            result = run_case(name, size, mode, args)
            bar.advance(task)
            if not args.quiet:
                bar.console.print(f'{description}: {result.time:.0f} ms')
            return result

        for size, mode in itertools.product(args.sizes, args.modes):
            found = {name: run(name, size, mode) for name in cases[size]}
            again = [name for name in found if found[name].time < SINGLE_TURN_TIME] * (
                args.turns - 1
            )
            total += len(again)
            bar.update(task, total=total)
            for name in again:
                found[name].times += run(name, size, mode).times
            results += found.values()
    return results


def run_case(name: str, size: tuple[int, int], mode: str, args: argparse.Namespace) -> Measured:
    """Measure one case in its own process."""
    done = subprocess.run(
        [
            sys.executable,
            __file__,
            '--case',
            name,
            '--sizes',
            f'{size[0]}x{size[1]}',
            '--modes',
            mode,
            '--device',
            args.device,
            '--repeats',
            str(args.repeats),
            '--seconds',
            str(args.seconds),
        ],
        env={**os.environ, 'SOFT_MM_BACKEND': CASES[name].backend or ''},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f'{name} at {size}, {mode}:\n{done.stderr[-2000:]}')
    result = Measured(**json.loads(done.stdout.splitlines()[-1]))
    if result.difference is not None and not result.difference <= AGREE:
        raise SystemExit(
            f'{name} at {size}: its maps differ by {result.difference:.1e} from those of the '
            f'reference backend, allowed is {AGREE}; its time is not reported'
        )
    return result


def tables(results: list[Measured]) -> str:
    """Markdown tables, one for each mode and size."""
    found = {(r.case, tuple(r.size), r.mode): r for r in results}
    lines = []
    for size, mode in dict.fromkeys((tuple(r.size), r.mode) for r in results):
        lines += [
            f'\n**{size[0]}×{size[1]}, {mode}**\n',
            '| backbone | time (ms) | fastest–slowest | memory (MiB) | time: PVT-Tiny = 1 | '
            'memory: PVT-Tiny = 1 | time: reference = 1 | difference to reference |',
            '|---' * 8 + '|',
        ]
        for r in results:
            if (tuple(r.size), r.mode) != (size, mode):
                continue
            pvt = found.get((PVT_TINY, size, mode))
            reference = found.get((CASES[r.case].baseline, size, mode))
            cells = [
                r.case,
                f'{r.time:.0f}',
                f'{min(r.times):.0f}–{max(r.times):.0f}',
                f'{r.memory:.0f}',
                f'{r.time / pvt.time:.2f}' if pvt else '–',
                f'{r.memory / pvt.memory:.2f}' if pvt else '–',
                f'{r.time / reference.time:.3f}' if reference else '–',
                '–' if r.difference is None else f'{r.difference:.0e}',
            ]
            lines.append(f'| {" | ".join(cells)} |')
    lines += [
        '\n**Exponents against the number of tokens**, from 512×512\n',
        '| backbone | mode | time | memory |',
        '|---' * 4 + '|',
    ]
    for case, mode in dict.fromkeys((r.case, r.mode) for r in results):
        points = series(results, case, mode)
        if len(points) > 1:
            slopes = (exponent(points, value) for value in ('time', 'memory'))
            lines.append(f'| {case} | {mode} | {" | ".join(f"{slope:.2f}" for slope in slopes)} |')
    return '\n'.join(lines)


def series(results: list[Measured], case: str, mode: str) -> list[Measured]:
    """The results of one case for images of at least 512×512 pixels."""
    return [r for r in results if (r.case, r.mode) == (case, mode) and r.tokens >= 512 * 512 / 16]


def exponent(points: list[Measured], value: str) -> float:
    """Slope of a least-squares line through the points in log-log scale."""
    x, y = ([log(getattr(point, name)) for point in points] for name in ('tokens', value))
    return statistics.linear_regression(x, y).slope


def plot(results: list[Measured], path: Path) -> None:
    """Plot time and memory against the number of tokens, with the exponents in the legend."""
    from matplotlib import pyplot as plt

    modes = list(dict.fromkeys(r.mode for r in results))
    _, axes = plt.subplots(2, len(modes), figsize=(7 * len(modes), 10), squeeze=False)
    for column, mode in zip(axes.T, modes):
        for axis, value, label in zip(column, ('time', 'memory'), ('time (ms)', 'memory (MiB)')):
            for case in dict.fromkeys(r.case for r in results):
                points = [r for r in results if (r.case, r.mode) == (case, mode)]
                fitted = series(results, case, mode)
                slope = f' ({exponent(fitted, value):.2f})' if len(fitted) > 1 else ''
                axis.plot(
                    [r.tokens for r in points],
                    [getattr(r, value) for r in points],
                    marker='o',
                    label=case + slope,
                )
            axis.set(
                xscale='log',
                yscale='log',
                title=mode,
                xlabel='tokens of the first stage',
                ylabel=label,
            )
            axis.legend(fontsize=7)
    plt.tight_layout()
    plt.savefig(path, dpi=100)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--device',
        choices=['cpu', 'cuda'],
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='device to measure on (default: cuda if there is a GPU, else cpu)',
    )
    parser.add_argument(
        '--sizes',
        type=size_of,
        nargs='+',
        metavar='HxW',
        default=[(224, 224), (512, 512), (800, 1344), (1344, 1344)],
        help='image sizes in pixels (default: 224x224 512x512 800x1344 1344x1344)',
    )
    parser.add_argument(
        '--modes',
        nargs='+',
        choices=MODES,
        default=list(MODES),
        help='what to measure (default: both)',
    )
    parser.add_argument(
        '--only',
        nargs='+',
        metavar='PART',
        help='measure only cases whose name contains a PART (default: all)',
    )
    parser.add_argument(
        '--repeats', type=int, default=3, help='minimum number of runs per turn (default: 3)'
    )
    parser.add_argument(
        '--seconds',
        type=float,
        default=3.0,
        help='minimum time that the runs of a turn take in total, in seconds (default: 3)',
    )
    parser.add_argument(
        '--turns',
        type=int,
        default=2,
        help='turns of each case whose step takes less than a second (default: 2)',
    )
    parser.add_argument(
        '--out', type=Path, metavar='FILE', help='also write FILE.md, FILE.json and FILE.png'
    )
    add_quiet(parser)
    parser.add_argument('--case', choices=list(CASES), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.case:
        of = args.case, args.sizes[0], args.modes[0], args.device, args.repeats, args.seconds
        print(json.dumps(measure(*of)))
        return
    results = run_all(args)
    conditions = f'{machine(args.device)}, fp32, batch 1'
    report(conditions, tables(results).strip(), results, args.out)
    if args.out:
        plot(results, args.out.with_suffix('.png'))


if __name__ == '__main__':
    main()
