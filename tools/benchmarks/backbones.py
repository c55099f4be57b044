"""Compare the speed and memory of each of our backbones with the one that it replaces, its twin.

    backbones.py                        print a table of all cases on this machine
    backbones.py --out folder/name      also write folder/name.md, name.json and the plot name.png
    backbones.py --device cuda --sizes 512x512 800x1344 --only SOFT-Norm PVT-Tiny
    backbones.py --only windows         Swin-T and InLine-Swin-T with larger windows

Forward passes and training steps (forward and backward) on one random image. Times are measured in one
process, in which the cases of a size take turns run by run, because the speed of a machine drifts; a ratio
is the median of those of the turns. Memory is the peak of a case's second step in a process of its own,
minus what the process held before it. The benchmark fails if the feature maps of a backbone differ from
those of the reference backend with the same options.
"""

import argparse
import io
import itertools
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from math import log
from pathlib import Path

import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from torch import Tensor, nn

from soft_mm import InLineCSwin, InLineSwin
from soft_mm.analysis.benchmark import (
    add_device,
    add_out,
    machine,
    median_ratio,
    milliseconds,
    peak_memory,
    report,
    size_of,
)
from soft_mm.models.layers import CrossShapedAttention, TransformerBlock
from soft_mm.ops import set_backend
from soft_mm.utils import add_quiet, progress

STAGES = dict(out_indices=(0, 1, 2, 3))


class SoftmaxCSwin(InLineCSwin):
    """CSwin Transformer: softmax attention in stripes in the first two stages too."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        for i, stripe_size in enumerate((1, 2)):
            dims, num_heads = (self.arch[key][i] for key in ('channels', 'num_heads'))
            for j in range(self.arch['depths'][i]):
                attention = CrossShapedAttention(dims, num_heads, stripe_size)
                self.stages[i].blocks[j] = TransformerBlock(attention, dims, eps=1e-5)


@dataclass(frozen=True)
class Case:
    """A backbone to measure.

    Attributes:
        config: config of the backbone.
        twin: name of the case that it replaces.
        reference: name of the case with the same config and the reference backend.
        package: package that registers the backbone.
        backend: backend of our ops; None for the default of the device.
    """

    config: dict
    twin: str | None = None
    reference: str | None = None
    package: str = 'soft_mm'
    backend: str | None = None


def soft(arch: str = 'tiny', **options) -> dict:
    return dict(type='soft_mm.SOFT', arch=arch, sym_norm=True, **options)


def pvt(*num_layers: int) -> Case:
    config = dict(type='mmdet.PyramidVisionTransformer', num_layers=list(num_layers))
    return Case(config, package='mmdet')


def windows(size: int) -> dict[str, Case]:
    """Swin-T and InLine-Swin-T with windows of ``size`` tokens in the stages whose maps are larger."""
    # mmdet's Swin would pad a map that is smaller than the window.
    softmax = {**InLineSwin.arch_zoo['tiny'], 'inline_depths': (0, 0, 0, 0)}
    twin = f'Swin-T, windows of {size}'
    return {
        twin: Case(dict(type='soft_mm.InLineSwin', arch=softmax, window_size=size)),
        f'InLine-{twin}': Case(dict(type='soft_mm.InLineSwin', inline_window_size=size), twin),
    }


SOFT_REFERENCE, INLINE_REFERENCE = 'SOFT-Norm-Tiny, reference', 'InLine-PVT-Tiny, reference'
CASES = {
    SOFT_REFERENCE: Case(soft(), 'PVT-Tiny', backend='reference'),
    'SOFT-Norm-Tiny': Case(soft(), 'PVT-Tiny', SOFT_REFERENCE),
    'SOFT-Norm-Tiny, exact solve': Case(soft(solver='ridge'), 'PVT-Tiny', SOFT_REFERENCE),
    'SOFT-Norm-Tiny, 49 landmarks': Case(soft(num_landmarks=49), 'PVT-Tiny', SOFT_REFERENCE),
    INLINE_REFERENCE: Case(
        dict(type='soft_mm.InLinePVT', arch='tiny'), 'PVT-Tiny', backend='reference'
    ),
    'InLine-PVT-Tiny': Case(
        dict(type='soft_mm.InLinePVT', arch='tiny'), 'PVT-Tiny', INLINE_REFERENCE
    ),
    'PVT-Tiny': pvt(2, 2, 2, 2),
    'SOFT-Norm-Small': Case(soft('small'), 'PVT-Small'),
    'InLine-PVT-Small': Case(dict(type='soft_mm.InLinePVT', arch='small'), 'PVT-Small'),
    'PVT-Small': pvt(3, 4, 6, 3),
    'InLine-Swin-T': Case(dict(type='soft_mm.InLineSwin', arch='tiny'), 'Swin-T'),
    'Swin-T': Case(dict(type='mmdet.SwinTransformer'), package='mmdet'),
    'InLine-Swin-S': Case(dict(type='soft_mm.InLineSwin', arch='small'), 'Swin-S'),
    'Swin-S': Case(dict(type='mmdet.SwinTransformer', depths=(2, 2, 18, 2)), package='mmdet'),
    'InLine-DeiT-T': Case(dict(type='soft_mm.InLineDeiT', arch='tiny'), 'DeiT-T'),
    'DeiT-T': Case(
        dict(type='mmpretrain.VisionTransformer', arch='deit-tiny', out_type='featmap'),
        package='mmpretrain',
    ),
    'InLine-CSwin-T': Case(dict(type='soft_mm.InLineCSwin', arch='tiny'), 'CSwin-T'),
    'CSwin-T': Case(dict(type=SoftmaxCSwin, arch='tiny')),
    'PVTv2-B1': Case(
        dict(type='mmdet.PyramidVisionTransformerV2', embed_dims=64, num_layers=[2, 2, 2, 2]),
        package='mmdet',
    ),
    'ResNet-50': Case(dict(type='mmdet.ResNet', depth=50), package='mmdet'),
    'ConvNeXt-T': Case(
        dict(type='mmpretrain.ConvNeXt', arch='tiny', **STAGES), package='mmpretrain'
    ),
    **windows(7),
    **windows(14),
    **windows(28),
    **windows(56),
}
MODES = ('forward', 'training step')
SIZES = [(224, 224), (384, 384), (512, 512), (640, 640), (1024, 1024), (800, 1344)]
# Pixels of the largest image on which the reference backend is measured.
REFERENCE_PIXELS = {'forward': 800 * 1344, 'training step': 512 * 512}
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

    def time_relative_to(self, other: 'Measured') -> float:
        """Median ratio of the times that were measured in the same turn."""
        return median_ratio(self.times, other.times)

    @property
    def tokens(self) -> float:
        """Number of tokens of the first stage's feature map."""
        return self.size[0] * self.size[1] / 16


@cache
def build(name: str, device: str) -> nn.Module:
    case = CASES[name]
    torch.manual_seed(0)
    with redirect_stdout(io.StringIO()):  # the toolboxes print when they are imported
        MMLogger.get_current_instance().setLevel('ERROR')  # not the initialisation of every weight
        if case.package != 'soft_mm':
            import_module(f'{case.package}.models')
        model = MODELS.build(case.config)
        model.init_weights()
    return model.to(device)


def step_of(name: str, size: tuple[int, int], mode: str, device: str) -> Callable:
    """A function that runs a forward pass or a training step, and returns the feature maps."""
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    model = build(name, device)

    def step(backend: str | None = CASES[name].backend) -> tuple[Tensor, ...]:
        model.train(mode != 'forward')
        with set_backend(backend), torch.set_grad_enabled(mode != 'forward'):
            maps = model(image)
            if mode != 'forward':
                sum(m.square().mean() for m in maps).backward()
                model.zero_grad()
        return maps

    return step


def is_measured(name: str, size: tuple[int, int], mode: str) -> bool:
    """Whether the case is measured at this size; other windows than the default's only at 224×224."""
    if 'windows' in name:
        return size == (224, 224)
    return CASES[name].backend != 'reference' or size[0] * size[1] <= REFERENCE_PIXELS[mode]


def run_all(args: argparse.Namespace) -> list[Measured]:
    """Measure all cases at every size and in every mode."""
    names = [name for name in CASES if not args.only or any(part in name for part in args.only)]
    results = []
    with progress(args.quiet) as bar:
        task = bar.add_task('', total=len(args.sizes) * len(args.modes))
        for size, mode in itertools.product(args.sizes, args.modes):
            measured = [
                Measured(name, size, mode) for name in names if is_measured(name, size, mode)
            ]
            if not measured:
                continue
            bar.update(task, description=f'{size[0]}×{size[1]}, {mode}')
            measure_times(measured, args)
            for result in measured:
                result.memory = memory_of(result, args.device)
                if not args.quiet:
                    bar.console.print(
                        f'{result.case}, {size[0]}×{size[1]}, {mode}: {result.time:.0f} ms'
                    )
            results += measured
            bar.advance(task)
    return results


def measure_times(results: list[Measured], args: argparse.Namespace) -> None:
    """Time all cases of a size and mode, in turns."""
    steps = [step_of(r.case, r.size, r.mode, args.device) for r in results]
    for result, step in zip(results, steps):
        maps = step()  # the first run allocates buffers and compiles kernels
        case = CASES[result.case]
        if (
            case.reference
            and result.mode == 'forward'
            and is_measured(case.reference, result.size, result.mode)
        ):
            result.difference = difference(maps, step('reference'))
            if not result.difference <= AGREE:
                raise SystemExit(
                    f'{result.case} at {result.size}: its maps differ by {result.difference:.1e} from '
                    f'those of the reference backend, allowed is {AGREE}; its time is not reported'
                )
    turns = total = 0
    while turns < args.turns or total < 1e3 * args.seconds:
        for result, step in zip(results, steps):
            result.times.append(milliseconds(step, args.device))
            total += result.times[-1]
        turns += 1


def difference(maps: tuple[Tensor, ...], reference: tuple[Tensor, ...]) -> float:
    """Largest difference of all maps, relative to the largest value of the reference's."""
    return max(((m - r).abs().max() / r.abs().max()).item() for m, r in zip(maps, reference))


def memory_of(result: Measured, device: str) -> float:
    """Peak memory in MiB, measured in a process of its own, where nothing else was allocated."""
    height, width = result.size
    words = '--case', result.case, '--sizes', f'{height}x{width}', '--modes', result.mode
    command = [sys.executable, __file__, *words, '--device', device]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f'{result.case} at {result.size}:\n{done.stderr[-2000:]}')
    return float(done.stdout.splitlines()[-1])


def tables(results: list[Measured]) -> str:
    """Markdown tables, one for each mode and size."""
    found = {(r.case, tuple(r.size), r.mode): r for r in results}
    lines = []
    for size, mode in dict.fromkeys((tuple(r.size), r.mode) for r in results):
        lines += [
            f'\n**{size[0]}×{size[1]}, {mode}**\n',
            '| backbone | twin | time (ms) | fastest–slowest | memory (MiB) | time / twin | '
            'memory / twin | time / reference | difference to reference |',
            '|---' * 9 + '|',
        ]
        for r in results:
            if (tuple(r.size), r.mode) != (size, mode):
                continue
            case = CASES[r.case]
            twin, reference = (found.get((n, size, mode)) for n in (case.twin, case.reference))
            cells = [
                r.case,
                case.twin or '–',
                f'{r.time:.0f}',
                f'{min(r.times):.0f}–{max(r.times):.0f}',
                f'{r.memory:.0f}',
                f'{r.time_relative_to(twin):.2f}' if twin else '–',
                f'{r.memory / twin.memory:.2f}' if twin else '–',
                f'{r.time_relative_to(reference):.3f}' if reference else '–',
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
    add_device(parser)
    parser.add_argument(
        '--sizes',
        type=size_of,
        nargs='+',
        metavar='HxW',
        default=SIZES,
        help=f'image sizes in pixels (default: {" ".join(f"{h}x{w}" for h, w in SIZES)})',
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
        '--turns', type=int, default=5, help='minimum number of runs of each case (default: 5)'
    )
    parser.add_argument(
        '--seconds',
        type=float,
        default=10.0,
        help='minimum time that all runs at a size take in total, in seconds (default: 10)',
    )
    add_out(parser, plot=True)
    add_quiet(parser)
    parser.add_argument('--case', choices=list(CASES), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.case:
        step = step_of(args.case, args.sizes[0], args.modes[0], args.device)
        step()  # the libraries allocate buffers of their own in their first call
        print(peak_memory(step, args.device))
        return
    results = run_all(args)
    conditions = f'{machine(args.device)}, fp32, batch 1'
    report(conditions, tables(results).strip(), results, args.out)
    if args.out:
        plot(results, args.out.with_suffix('.png'))


if __name__ == '__main__':
    main()
