"""Draw the papers' figures from what is measured on this machine.

    figures.py memory
    figures.py convergence injectivity locality --images FOLDER
    figures.py windows resolution

- memory: peak memory of a training step against the number of tokens (arXiv 2110.11945, Figure 1b).
- convergence: error of Newton's inverse against its iterations (the same paper).
- injectivity: queries that get the same attention weights (arXiv 2412.06590).
- locality: attention to the tokens around a query (the same paper).
- windows, resolution: speed against the size of the windows and of the image (the same paper), from
  what tools/benchmarks/backbones.py has measured.

Each figure is written to NAME.png and, as numbers with their conditions, to NAME.json.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from ctypes import CDLL
from dataclasses import asdict, dataclass, field
from functools import partial
from math import prod
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mmengine.config import Config
from torch import Tensor, nn

from soft_mm import MODELS, build_backbone
from soft_mm.analysis.attention import AttentionCall, record_attention
from soft_mm.analysis.benchmark import add_device, machine, median_ratio, peak_memory
from soft_mm.fileio import atomic_write, last_checkpoint, load_backbone
from soft_mm.fileio.media import find_media
from soft_mm.models.backbones import Backbone
from soft_mm.models.layers import (
    LinformerAttention,
    NystromformerAttention,
    PerformerAttention,
    SelfAttention,
    SOFTAttention,
    TransformerBlock,
)
from soft_mm.ops import set_backend
from soft_mm.ops.gaussian_kernel import gaussian_kernel
from soft_mm.ops.inline_attention.reference import attention_rows as inline_rows
from soft_mm.ops.newton_solve.rational import rational_newton_solve
from soft_mm.ops.nystrom_attention.scale import newton_start
from soft_mm.ops.shapes import ceil_div, split_qkv
from soft_mm.ops.softmax_attention.reference import attention_rows as softmax_rows

# Names of the study's variants, and the backbones that stand for them with random weights.
BACKBONES = {
    'soft': ('soft-tiny', {}),
    'soft-norm': ('soft-norm-tiny', {}),
    'soft-softmax': ('soft-tiny', dict(attention='softmax')),
    'inline-pvt': ('inline-pvt-tiny', {}),
    'inline-pvt-division': (
        'inline-pvt-tiny',
        dict(kernel_function='relu', normalization='division'),
    ),
}
RESULTS = Path(__file__).with_name('results')
BENCHMARKS = Path(__file__).parents[1] / 'benchmarks/results'
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, as in the configs


@dataclass
class Curve:
    """Values over an x axis. ``style`` is one of matplotlib's: '--' for a paper's or a limit's."""

    label: str
    x: list[float]
    y: list[float]
    style: str = 'o-'


@dataclass
class Panel:
    """The curves of one pair of axes; ``scales`` are those of x and y."""

    title: str
    labels: tuple[str, str]
    curves: list[Curve] = field(default_factory=list)
    scales: tuple[str, str] = ('linear', 'linear')


def load_images(args: argparse.Namespace, side: int) -> Tensor:
    """The images ``(B, 3, side, side)``, stretched to squares and normalised."""
    images = [
        cv2.cvtColor(cv2.resize(cv2.imread(path), (side, side)), cv2.COLOR_BGR2RGB)
        for path in find_media(args.images).values()
    ]
    images = (np.stack(images).astype(np.float32) - MEAN) / STD
    return torch.from_numpy(images).float().permute(0, 3, 1, 2)


def build(variant: str, args: argparse.Namespace) -> Backbone:
    """A backbone in eval mode, of the study if there is one, otherwise with random weights.

    Raises:
        ValueError: if the study has no checkpoint of the variant.
    """
    if args.study is None:
        torch.manual_seed(0)
        name, options = BACKBONES[variant]
        return build_backbone(name, **options).eval()
    folder = args.study / variant / 'seed-0'
    if (checkpoint := last_checkpoint(folder)) is None:
        raise ValueError(f'--study: there is no checkpoint in {folder}')
    backbone = MODELS.build(Config.fromfile(folder.with_suffix('.py')).model.backbone)
    load_backbone(backbone, checkpoint)
    return backbone.eval()


def conditions_of(args: argparse.Namespace) -> str:
    """What the figures of images were made with."""
    images = ', '.join(Path(name).name for name in find_media(args.images).values())
    weights = 'of the study' if args.study else 'random'
    return f'images {images}; weights {weights}'


# --- memory -----------------------------------------------------------------------------------------

LENGTHS = tuple(784 * p for p in range(1, 9))
DIMS, HEADS, DEPTH, SIDE = 384, 12, 12, 28  # the map of tokens is SIDE tokens wide
# Softmax attention with materialised weights is measured while those of all layers fit in.
MATERIALISED = 2**32  # bytes
ATTENTIONS = {
    'softmax, materialised': lambda: SelfAttention(DIMS, HEADS),
    'softmax, fused': lambda: SelfAttention(DIMS, HEADS),
    'Linformer': lambda: LinformerAttention(DIMS, HEADS, 2, 49),
    'Performer': lambda: PerformerAttention(DIMS, HEADS),
    'Nyströmformer': lambda: NystromformerAttention(DIMS, HEADS, 2, 49),
    'SOFT': lambda: SOFTAttention(DIMS, HEADS, 2, 3, num_landmarks=49),
}


class Layers(nn.Module):
    """Transformer layers on a map of tokens."""

    def __init__(self, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(attention(), DIMS) for _ in range(DEPTH))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, (x.shape[1] // SIDE, SIDE))
        return x


def memory(args: argparse.Namespace) -> tuple[str, list[Panel]]:
    # glibc then returns every freed tensor to the system at once, instead of keeping it for reuse.
    CDLL(None).mallopt(-3, 2**16)  # M_MMAP_THRESHOLD
    panel = Panel('training step of 12 layers, batch 1', ('tokens', 'peak memory (MiB)'))
    for name, attention in ATTENTIONS.items():
        materialised = 'materialised' in name
        lengths = [
            n for n in args.lengths if not materialised or 4 * DEPTH * HEADS * n**2 <= MATERIALISED
        ]
        torch.manual_seed(0)
        model = Layers(attention).to(args.device)

        def step(length: int, model: nn.Module = model) -> None:
            model(torch.randn(1, length, DIMS, device=args.device)).square().mean().backward()
            model.zero_grad()

        with set_backend('reference' if materialised else None):
            step(lengths[0])
            peaks = [peak_memory(partial(step, n), args.device) for n in lengths]
        panel.curves.append(Curve(name, lengths, peaks))
    return machine(args.device), [panel]


# --- convergence ------------------------------------------------------------------------------------

ITERATIONS = 20


def landmark_kernels(backbone: Backbone, images: Tensor) -> dict[int, list[Tensor]]:
    """Kernels between landmarks, K2 ``(B, h, m, m)``, of every block with SOFT attention, by stage."""
    kernels = {}

    def keep(stage: int, _, __, landmarks: Tensor) -> None:
        kernels.setdefault(stage, []).append(gaussian_kernel(landmarks, landmarks))

    handles = [
        block.attn.landmarks.register_forward_hook(partial(keep, i))
        for i, stage in enumerate(backbone.stages)
        for block in stage.blocks
        if isinstance(block.attn, SOFTAttention)
    ]
    backbone(images)
    for handle in handles:
        handle.remove()
    return kernels


def inverse_errors(p: Tensor, alpha: Tensor) -> tuple[list[float], float]:
    """``‖P V P − P‖₂ / ‖P‖₂``, the mean of all matrices ``(..., m, m)``.

    Returns:
        That of Newton's iterates V_0 to V_20, and that of the function with one pole which replaces
        20 iterations.
    """

    def error(v_p: Tensor) -> float:
        wrong = p @ v_p - p
        norms = (torch.linalg.eigvalsh((x + x.mT) / 2).abs().amax(-1) for x in (wrong, p))
        return torch.div(*norms).mean().item()

    v, errors = alpha * p, []
    for _ in range(ITERATIONS + 1):
        errors.append(error(v @ p))
        v = 2 * v - v @ p @ v
    alpha = alpha.expand(*p.shape[:-2], 1, 1)
    return errors, error(rational_newton_solve(p, p, alpha, ITERATIONS, False))


def convergence(args: argparse.Namespace) -> tuple[str, list[Panel]]:
    panels = []
    for name in ('soft', 'soft-norm'):
        backbone = build(name, args)
        for side in args.sides:
            panel = Panel(
                f'{name}, {side}×{side}', ('iteration', '‖PVP − P‖ / ‖P‖'), scales=('linear', 'log')
            )
            kernels = landmark_kernels(backbone, load_images(args, side))
            for stage, matrices in kernels.items():
                found = []
                for k2 in matrices:
                    sums = k2.sum(-1, keepdim=True)
                    found.append(
                        inverse_errors(*newton_start(k2, sums, name == 'soft-norm', 'matrix'))
                    )
                newton = [statistics.mean(errors) for errors in zip(*(n for n, _ in found))]
                label = f'stage {stage + 1}, {matrices[0].shape[-1]} landmarks'
                panel.curves += [
                    Curve(label, list(range(ITERATIONS + 1)), newton, 'o-'),
                    Curve(
                        f'stage {stage + 1}, one pole',
                        [ITERATIONS],
                        [statistics.mean(pole for _, pole in found)],
                        'kx',
                    ),
                ]
            panels.append(panel)
    return conditions_of(args), panels


# --- injectivity ------------------------------------------------------------------------------------

SAME = 1e-3  # sum of the differences of two rows of weights; each row sums to 1
MAX_QUERIES = 256


def linear_rows(q: Tensor, k: Tensor) -> Tensor:
    """Weights ``(..., M, N)`` of linear attention with φ = ReLU."""
    return inline_rows(q.relu(), k.relu(), normalization='division')


ROWS = {'linear': linear_rows, 'InLine': inline_rows, 'softmax': softmax_rows}


def four_queries(affine: bool) -> dict[str, Tensor]:
    """Rows ``(4, 4)`` of four queries with four keys, for each attention and the same φ.

    φ(x) is ReLU(x), or with ``affine`` ReLU(A x + b). The queries are on one line, and their φ on
    one ray.
    """
    a, b = torch.eye(2), torch.zeros(2)
    if affine:
        a, b = torch.tensor([[1.0, 0.5], [-0.5, 1.0]]), torch.tensor([0.3, 0.2])
    keys = torch.tensor([[1.0, 0.2], [0.3, 1.0], [0.8, 0.9], [-0.4, 0.7]])
    on_ray = torch.tensor([0.5, 1.0, 2.0, 4.0])[:, None] * torch.tensor([1.0, 0.6])
    queries = torch.linalg.solve(a, (on_ray - b).mT).mT
    phi_q, phi_k = ((x @ a.mT + b).relu() for x in (queries, keys))
    return dict(
        linear=linear_rows(phi_q, phi_k),
        InLine=inline_rows(phi_q, phi_k),
        softmax=softmax_rows(queries, keys),
    )


def row_distances(rows: Tensor) -> Tensor:
    """Sum of the absolute differences of each pair of rows ``(B, h, M, N)`` of a head, flat."""
    return torch.cat([torch.pdist(head, p=1) for head in rows.flatten(0, 1)])


def queries_and_keys(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Queries, at most MAX_QUERIES drawn at random, and all keys of a layer, ``(B, h, ..., d)``."""
    q, k, _ = split_qkv(call.layer.qkv(call.x), call.layer.num_heads)
    return q[:, :, torch.randperm(q.shape[2])[:MAX_QUERIES]], k


def injectivity(args: argparse.Namespace) -> tuple[str, list[Panel]]:
    panels = []
    for affine, phi in ((False, 'ReLU(x)'), (True, 'ReLU(Ax + b)')):
        for name, rows in four_queries(affine).items():
            panel = Panel(f'{name}, four queries, φ(x) = {phi}', ('key', 'weight'))
            panel.curves = [
                Curve(f'query {i}', [1, 2, 3, 4], row.tolist()) for i, row in enumerate(rows, 1)
            ]
            panels.append(panel)
    tolerances = torch.logspace(-5, 0.3, 54)
    calls = record_attention(build('inline-pvt', args), load_images(args, 224))
    layers = [(call.stage + 1, *queries_and_keys(call)) for call in calls]
    for name, rows in ROWS.items():
        panel = Panel(
            f'{name}, queries of InLine-PVT',
            ('sum of the differences of two rows', 'share of pairs that differ less'),
            scales=('log', 'linear'),
        )
        for stage in dict.fromkeys(stage for stage, *_ in layers):
            found = torch.cat([row_distances(rows(q, k)) for i, q, k in layers if i == stage])
            same = (found < SAME).sum().item()
            shares = torch.searchsorted(found.sort().values, tolerances) / len(found)
            label = f'stage {stage}: {same} of {len(found)} pairs below {SAME}'
            panel.curves.append(Curve(label, tolerances.tolist(), shares.tolist(), '-'))
        panels.append(panel)
    return conditions_of(args), panels


# --- locality ---------------------------------------------------------------------------------------

GRID = 7  # queries per side of a feature map, evenly spaced
NEIGHBOURHOODS = (3, 5, 7)


def near(queries: Tensor, hw: tuple[int, int], side: int) -> Tensor:
    """Which tokens are in the ``side``×``side`` around queries (M, 2), rows and columns: (M, H, W)."""
    rows, columns = (
        (torch.arange(length) - queries[:, i, None]).abs() <= side // 2
        for i, length in enumerate(hw)
    )
    return rows[:, :, None] & columns[:, None]


def local_share(weights: Tensor, queries: Tensor, side: int) -> Tensor:
    """Share of the absolute weights ``(..., M, H, W)`` that is near the queries (M, 2), (..., M)."""
    size = weights.abs()
    inside = size * near(queries, size.shape[-2:], side)
    return inside.sum((-2, -1)) / size.sum((-2, -1))


def mean_shares(weights: Tensor, queries: Tensor) -> list[float]:
    """The mean share in each of the neighbourhoods."""
    return [local_share(weights, queries, side).mean().item() for side in NEIGHBOURHOODS]


def with_filters(weights: Tensor, filters: Tensor, queries: Tensor) -> Tensor:
    """Add a convolution's filters to the weights of the attention.

    Args:
        weights: ``(B, h, M, H, W)``.
        filters: ``(B, M, h, c, k, k)`` at each query.
        queries: rows and columns ``(M, 2)``.

    Returns:
        ``(B, h, c, M, H, W)``.
    """
    side = filters.shape[-1]
    padded = F.pad(weights, (side // 2,) * 4)[:, :, None].repeat(1, 1, filters.shape[3], 1, 1, 1)
    for i, (y, x) in enumerate(queries.tolist()):
        padded[..., i, y : y + side, x : x + side] += filters[:, i]
    inner = slice(side // 2, -(side // 2))
    return padded[..., inner, inner]


def shares_of(call: AttentionCall) -> Iterator[tuple[str, list[float]]]:
    """Mean shares of a layer's attention, without and with its convolution, and of uniform weights."""
    height, width = call.hw
    ys, xs = (
        torch.linspace(0, side - 1, min(side, GRID)).round().long() for side in (height, width)
    )
    queries = torch.cartesian_prod(ys, xs)
    tokens = call.num_extra + queries @ torch.tensor([width, 1])
    weights = call.rows(tokens)[..., call.num_extra :].unflatten(-1, call.hw)
    yield '', mean_shares(weights, queries)
    if (filters := call.filters(tokens)) is not None:
        yield ' with its convolution', mean_shares(with_filters(weights, filters, queries), queries)
    yield 'uniform', mean_shares(torch.ones_like(weights), queries)


def locality(args: argparse.Namespace) -> tuple[str, list[Panel]]:
    images, found = load_images(args, 224), {}
    for name in ('soft-softmax', 'soft-norm', 'inline-pvt', 'inline-pvt-division'):
        for call in record_attention(build(name, args), images):
            for part, shares in shares_of(call):
                label = part if part == 'uniform' else name + part
                found.setdefault(label, {}).setdefault(call.stage + 1, []).append(shares)
    panels = []
    for i, side in enumerate(NEIGHBOURHOODS):
        panel = Panel(f'{side}×{side} around the query', ('stage', 'share of absolute weights'))
        for label, stages in found.items():
            shares = [statistics.mean(s[i] for s in blocks) for blocks in stages.values()]
            style = '--' if label == 'uniform' else 'o-'
            panel.curves.append(Curve(label, list(stages), shares, style))
        panels.append(panel)
    return conditions_of(args), panels


# --- windows and resolution -------------------------------------------------------------------------

WINDOWS = (7, 14, 28, 56)
# On an RTX 3090, as far as the paper's figure can be read, in images per second and ratios of times.
PAPER_WINDOWS = {'Swin-T': (989, 842, 530, 287), 'InLine-Swin-T': (940, 1005, 1029, 1055)}
PAPER_RESOLUTION = [640, 1024], [2.4, 4.8]  # image sides, DeiT-T / InLine-DeiT-T
TWINS = {
    'InLine-DeiT-T': 'DeiT-T',
    'InLine-Swin-T': 'Swin-T',
    'InLine-PVT-Tiny': 'PVT-Tiny',
    'SOFT-Norm-Tiny': 'PVT-Tiny',
}


def read_benchmark(args: argparse.Namespace) -> dict:
    """The results of tools/benchmarks/backbones.py on the device."""
    return json.loads((args.benchmarks / f'backbones_{args.device}.json').read_text())


def times_of(benchmark: dict) -> dict[tuple[str, int], list[float]]:
    """Times of the forward passes, by case and side of the square with as many pixels."""
    return {
        (r['case'], round(prod(r['size']) ** 0.5)): r['times']
        for r in benchmark['results']
        if r['mode'] == 'forward'
    }


def windows(args: argparse.Namespace) -> tuple[str, list[Panel]]:
    benchmark = read_benchmark(args)
    times = times_of(benchmark)
    panel = Panel('224×224', ('window size', 'images per second, windows of 7 = 1'))
    for name, paper in PAPER_WINDOWS.items():
        cases = [times[f'{name}, windows of {size}', 224] for size in WINDOWS]
        panel.curves += [
            Curve(name, list(WINDOWS), [median_ratio(cases[0], case) for case in cases]),
            Curve(f'{name}, paper', list(WINDOWS), [x / paper[0] for x in paper], 'x--'),
        ]
    return benchmark['machine'], [panel]


def resolution(args: argparse.Namespace) -> tuple[str, list[Panel]]:
    benchmark = read_benchmark(args)
    times = times_of(benchmark)
    panel = Panel(
        'forward pass', ('√(height · width) of the image (pixels)', 'time of the twin / time')
    )
    for name, twin in TWINS.items():
        sides = sorted(side for case, side in times if case == name and (twin, side) in times)
        ratios = [median_ratio(times[twin, side], times[name, side]) for side in sides]
        panel.curves.append(Curve(f'{twin} / {name}', sides, ratios))
    panel.curves.append(Curve('DeiT-T / InLine-DeiT-T, paper', *PAPER_RESOLUTION, 'x--'))
    return benchmark['machine'], [panel]


# --- the command ------------------------------------------------------------------------------------

FIGURES = {
    'memory': memory,
    'convergence': convergence,
    'injectivity': injectivity,
    'locality': locality,
    'windows': windows,
    'resolution': resolution,
}
OF_IMAGES = ('convergence', 'injectivity', 'locality')
COLUMNS = 3


def draw(panels: list[Panel], path: Path) -> None:
    """Draw the panels, at most COLUMNS in a row."""
    columns = min(len(panels), COLUMNS)
    rows = ceil_div(len(panels), columns)
    drawing = Figure(figsize=(5 * columns + 1, 4 * rows), layout='constrained')
    for panel, axis in zip(panels, drawing.subplots(rows, columns, squeeze=False).flat):
        for curve in panel.curves:
            axis.plot(curve.x, curve.y, curve.style, label=curve.label, markersize=4)
        (x_label, y_label), (x_scale, y_scale) = panel.labels, panel.scales
        axis.set(title=panel.title, xlabel=x_label, ylabel=y_label, xscale=x_scale, yscale=y_scale)
        if x_scale == 'linear':
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if y_scale == 'linear':
            axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
        axis.legend(fontsize=7)
    for axis in drawing.axes[len(panels) :]:
        axis.remove()
    with atomic_write(path) as temporary:
        drawing.savefig(temporary, format='png', dpi=100)


def write_json(name: str, conditions: str, panels: list[Panel], path: Path) -> None:
    data = dict(figure=name, conditions=conditions, panels=[asdict(panel) for panel in panels])
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1))


def number_of_tokens(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 2 * SIDE or number % SIDE:
        raise argparse.ArgumentTypeError(
            f'{text!r} must be a multiple of {SIDE}, at least {2 * SIDE}'
        )
    return number


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'names', nargs='+', metavar='NAME', choices=list(FIGURES), help=', '.join(FIGURES)
    )
    parser.add_argument(
        '--images',
        nargs='+',
        metavar='INPUT',
        help=f'images, folders and patterns of them, for {", ".join(OF_IMAGES)}',
    )
    parser.add_argument(
        '--study',
        type=Path,
        metavar='FOLDER',
        help='work dir of study.py, whose weights the same figures use (default: random weights)',
    )
    parser.add_argument(
        '--sides',
        type=int,
        nargs='+',
        default=[224, 512],
        help='image sides of convergence, in pixels (default: 224 512)',
    )
    parser.add_argument(
        '--lengths',
        type=number_of_tokens,
        nargs='+',
        default=LENGTHS,
        help=f'numbers of tokens of memory, multiples of {SIDE} (default: {" ".join(map(str, LENGTHS))})',
    )
    parser.add_argument(
        '--benchmarks',
        type=Path,
        default=BENCHMARKS,
        metavar='FOLDER',
        help='folder with the JSON files of the benchmarks (default: those of the project)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=RESULTS,
        metavar='FOLDER',
        help='folder to write to (default: tools/analysis_tools/results)',
    )
    add_device(parser)
    args = parser.parse_args()
    if not args.images and (names := [name for name in args.names if name in OF_IMAGES]):
        parser.error(f'{", ".join(names)}: --images must name images or a folder of them')
    return args


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        try:
            with torch.set_grad_enabled(name == 'memory'):
                conditions, panels = FIGURES[name](args)
        except (OSError, ValueError) as error:
            raise SystemExit(f'figures.py: error: {error}') from None
        path = args.out / name
        draw(panels, path.with_suffix('.png'))
        write_json(name, conditions, panels, path.with_suffix('.json'))
        print(f'{path}.png, {path}.json: {conditions}')


if __name__ == '__main__':
    main()
