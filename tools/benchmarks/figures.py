"""Measure what the papers' figures of speed and memory show, and plot it beside their numbers.

    figures.py                        print a table of all three figures on this machine
    figures.py --out folder/name      also write folder/name.md, name.json and the plot name.png
    figures.py --device cuda --only windows

- windows: images per second of Swin-T and InLine-Swin-T at 224×224 against the size of the windows,
  relative to windows of 7 (InLine, arXiv 2412.06590, its speed figure).
- sizes: time of DeiT-T relative to InLine-DeiT-T against the image size (the same figure).
- memory: peak memory of a training step of 12 layers with 384 channels and 12 heads against the
  number of tokens, for softmax and for SOFT with 49 landmarks (arXiv 2110.11945, Figure 1b, which
  gives no numbers).

The models of a figure take turns, because the speed of a machine drifts.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from soft_mm import InLineSwin
from soft_mm.analysis.benchmark import (
    add_device,
    add_out,
    machine,
    milliseconds,
    peak_memory,
    report,
)
from soft_mm.models.layers import SelfAttention, SOFTAttention, TransformerBlock
from soft_mm.utils import add_quiet, progress

WINDOWS = (7, 14, 28, 56)
SIDES = (224, 384, 640, 1024)
LENGTHS = tuple(784 * p for p in range(1, 9))
SOFTMAX_SWIN, INLINE_SWIN, DEIT = 'Swin-T', 'InLine-Swin-T', 'DeiT-T / InLine-DeiT-T'
# On an RTX 3090, as far as the paper's figure can be read: images per second, and ratios of times.
PAPER = {
    'windows': {SOFTMAX_SWIN: (989, 842, 530, 287), INLINE_SWIN: (940, 1005, 1029, 1055)},
    'sizes': {DEIT: (None, None, 2.4, 4.8)},
}


@dataclass
class Curve:
    """Values of one model over the x axis of a figure; the paper's where it has them."""

    figure: str
    model: str
    x: tuple[int, ...]
    values: list[float] = field(default_factory=list)
    paper: list[float | None] = field(default_factory=list)


class Layers(nn.Module):
    """Transformer layers on a map of tokens that is 28 tokens wide."""

    def __init__(self, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(attention(), 384) for _ in range(12))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, (x.shape[1] // 28, 28))
        return x


def build(config: dict, device: str) -> nn.Module:
    package = config['type'].split('.')[0]
    with redirect_stdout(sys.stderr):  # the toolboxes print when they are imported
        import_module(f'{package}.models')
    model = MODELS.build(config).to(device)
    model.eval()  # mmdet's backbones do not return themselves
    return model


def times(steps: list[Callable], args: argparse.Namespace, advance: Callable) -> list[float]:
    """Median time of each step in milliseconds; the steps take turns."""
    found = [[] for _ in steps]
    for step in steps:
        step()
    for _ in range(args.turns):
        for step, measured in zip(steps, found):
            measured.append(milliseconds(step, args.device))
        advance()
    return [statistics.median(measured) for measured in found]


@torch.no_grad()
def windows(args: argparse.Namespace, advance: Callable) -> list[Curve]:
    image = torch.randn(1, 3, 224, 224, device=args.device)
    # Softmax in every block; no window is larger than its map, where mmdet's Swin would pad the map.
    softmax = {**InLineSwin.arch_zoo['tiny'], 'inline_depths': (0, 0, 0, 0)}
    configs = [
        *(dict(type='soft_mm.InLineSwin', arch=softmax, window_size=size) for size in WINDOWS),
        *(dict(type='soft_mm.InLineSwin', inline_window_size=size) for size in WINDOWS),
    ]
    models = [build(config, args.device) for config in configs]
    found = times([lambda model=model: model(image) for model in models], args, advance)
    curves = []
    for name, part in ((SOFTMAX_SWIN, found[: len(WINDOWS)]), (INLINE_SWIN, found[len(WINDOWS) :])):
        paper = PAPER['windows'][name]
        relative = [part[0] / time for time in part]
        curves.append(Curve('windows', name, WINDOWS, relative, [x / paper[0] for x in paper]))
    return curves


@torch.no_grad()
def sizes(args: argparse.Namespace, advance: Callable) -> list[Curve]:
    softmax = build(
        dict(type='mmpretrain.VisionTransformer', arch='deit-tiny', out_type='featmap'), args.device
    )
    inline = build(dict(type='soft_mm.InLineDeiT', arch='tiny'), args.device)
    ratios = []
    for side in SIDES:
        image = torch.randn(1, 3, side, side, device=args.device)
        steps = [lambda model=model, image=image: model(image) for model in (softmax, inline)]
        slow, fast = times(steps, args, advance)
        ratios.append(slow / fast)
    return [Curve('sizes', DEIT, SIDES, ratios, list(PAPER['sizes'][DEIT]))]


def memory(args: argparse.Namespace, advance: Callable) -> list[Curve]:
    curves = []
    for name, attention in (
        ('softmax', lambda: SelfAttention(384, 12)),
        ('SOFT', lambda: SOFTAttention(384, 12, 2, 3, num_landmarks=49)),
    ):
        torch.manual_seed(0)
        model, values = Layers(attention).to(args.device), []

        def step(length: int, model: nn.Module = model) -> None:
            model(torch.randn(1, length, 384, device=args.device)).square().mean().backward()
            model.zero_grad()

        step(LENGTHS[0])
        for length in LENGTHS:
            values.append(peak_memory(lambda length=length: step(length), args.device))
            advance()
        curves.append(Curve('memory', name, LENGTHS, values))
    return curves


FIGURES = {'windows': windows, 'sizes': sizes, 'memory': memory}
LABELS = {
    'windows': ('window size', 'images per second, windows of 7 = 1'),
    'sizes': ('image side (pixels)', 'time ratio'),
    'memory': ('tokens', 'peak memory (MiB)'),
}


def tables(curves: list[Curve]) -> str:
    """A Markdown table for each figure."""
    lines = []
    for figure in dict.fromkeys(curve.figure for curve in curves):
        of_figure = [curve for curve in curves if curve.figure == figure]
        x_label, y_label = LABELS[figure]
        lines += [
            f'\n**{y_label}**\n',
            f'| {x_label} | {" | ".join(str(x) for x in of_figure[0].x)} |',
            '|---' * (1 + len(of_figure[0].x)) + '|',
        ]
        for curve in of_figure:
            for name, values in (
                (curve.model, curve.values),
                (f'{curve.model}, paper', curve.paper),
            ):
                if values:
                    cells = ('–' if x is None else f'{x:.3g}' for x in values)
                    lines.append(f'| {name} | {" | ".join(cells)} |')
    return '\n'.join(lines).strip()


def plot(curves: list[Curve], path: Path) -> None:
    """Plot each figure; the paper's numbers are dashed."""
    from matplotlib import pyplot as plt

    figures = list(dict.fromkeys(curve.figure for curve in curves))
    _, axes = plt.subplots(1, len(figures), figsize=(6 * len(figures), 4.5), squeeze=False)
    for axis, figure in zip(axes[0], figures):
        for curve in curves:
            if curve.figure != figure:
                continue
            (line,) = axis.plot(curve.x, curve.values, marker='o', label=curve.model)
            points = [(x, y) for x, y in zip(curve.x, curve.paper) if y is not None]
            if points:
                label, color = f'{curve.model}, paper (RTX 3090)', line.get_color()
                axis.plot(*zip(*points), linestyle='--', marker='x', label=label, color=color)
        axis.set(xlabel=LABELS[figure][0], ylabel=LABELS[figure][1], ylim=(0, None))
        axis.legend(fontsize=8)
    plt.tight_layout()
    plt.savefig(path, dpi=100)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_device(parser)
    parser.add_argument(
        '--only',
        nargs='+',
        choices=list(FIGURES),
        default=list(FIGURES),
        help='figures to measure (default: all)',
    )
    parser.add_argument(
        '--turns', type=int, default=9, help='measurements of each model (default: 9)'
    )
    add_out(parser, plot=True)
    add_quiet(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    steps = dict(windows=args.turns, sizes=len(SIDES) * args.turns, memory=2 * len(LENGTHS))
    curves = []
    with progress(args.quiet) as bar:
        task = bar.add_task('', total=sum(steps[name] for name in args.only))
        for name in args.only:
            bar.update(task, description=name)
            curves += FIGURES[name](args, lambda: bar.advance(task))
    conditions = f'{machine(args.device)}, fp32, batch 1'
    report(conditions, tables(curves), curves, args.out)
    if args.out:
        plot(curves, args.out.with_suffix('.png'))


if __name__ == '__main__':
    main()
