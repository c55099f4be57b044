"""Train one small detector with every backbone and every attention, and compare what they learn.

    study.py                                 every variant with one seed, in work_dirs/study
    study.py --seeds 3 --out folder/name     write folder/name.md, name.json and the plot name.png
    study.py --only soft-norm soft-softmax   some variants

All variants have the same config, configs/demo/retinanet_soft-norm-narrow_fpn_hard-shapes.py, apart
from the backbone, so they see the same images equally often. Backbones have half the channels of their
smallest size. On a CPU, as many are trained at once as there are cores. What is trained already is not
trained again. The images are made by `make_shapes.py data/hard-shapes --hard --train 1000 --val 200`;
`make study` does both.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from matplotlib.figure import Figure
from mmengine.config import Config

from soft_mm.analysis.benchmark import add_out, machine, peak_memory, report
from soft_mm.engine import build_runner
from soft_mm.fileio import atomic_write
from soft_mm.utils import add_cfg_options, add_quiet, progress

CONFIG = Path(__file__).parents[2] / 'configs/demo/retinanet_soft-norm-narrow_fpn_hard-shapes.py'
CHANNELS, HEADS = (32, 64, 160, 256), (1, 2, 5, 8)
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def soft(**options) -> dict:
    arch = dict(channels=CHANNELS, num_heads=HEADS, depths=(1, 2, 3, 2), kernel_sizes=(9, 5, 3))
    return dict(type='soft_mm.SOFT', arch=arch, img_size=128, **options)


def inline(**options) -> dict:
    arch = dict(channels=CHANNELS, num_heads=HEADS, depths=(2, 2, 2, 2), mlp_ratios=(8, 8, 4, 4))
    return dict(type='soft_mm.InLinePVT', arch=arch, img_size=128, **options)


VARIANTS = {
    'soft-norm': soft(sym_norm=True),
    'soft': soft(),
    'soft-softmax': soft(attention='softmax'),
    'soft-linformer': soft(attention='linformer'),
    'soft-performer': soft(attention='performer'),
    'soft-nystromformer': soft(attention='nystromformer'),
    'inline-pvt': inline(),
    'inline-pvt-relu': inline(kernel_function='relu'),
    'inline-pvt-division': inline(kernel_function='relu', normalization='division'),
    'inline-pvt-no-conv': inline(dynamic_conv=False),
    'inline-pvt-division-no-conv': inline(
        kernel_function='relu', normalization='division', dynamic_conv=False
    ),
    'pvt': dict(
        type='PyramidVisionTransformer',
        embed_dims=32,
        num_heads=list(HEADS),
        num_layers=[2, 2, 2, 2],
        pretrain_img_size=128,
    ),
    'resnet-18': dict(type='ResNet', depth=18, base_channels=32, stem_channels=32, norm_eval=False),
}
NECK = {'resnet-18': [32, 64, 128, 256]}  # channels of the feature maps, where they differ


@dataclass
class Run:
    """A trained and evaluated variant.

    Attributes:
        variant (str), seed (int): which one.
        params (float): millions of parameters of the detector.
        ap (float), ap50 (float): COCO's average precision, in percent.
        relation (float): mean AP of `star` and `twin`, which only the rest of the image tells apart.
        minutes (float): time of training and evaluation; on a CPU, CPU time, to which it does not
            matter what else runs.
        memory (float): their peak memory in MiB, above that of the untrained model.
    """

    variant: str
    seed: int
    params: float
    ap: float
    ap50: float
    relation: float
    minutes: float
    memory: float


# Columns of the table and how a mean is written.
COLUMNS = {
    'ap': ('AP', '.1f'),
    'ap50': ('AP50', '.1f'),
    'relation': ('AP of star and twin', '.1f'),
    'minutes': ('time (minutes)', '.1f'),
    'memory': ('memory (MiB)', '.0f'),
}


def config_of(variant: str, seed: int, args: argparse.Namespace) -> Config:
    cfg = Config.fromfile(CONFIG)
    in_channels = NECK.get(variant, list(CHANNELS))
    backbone = dict(VARIANTS[variant], _delete_=True)
    cfg.merge_from_dict(dict(model=dict(backbone=backbone, neck=dict(in_channels=in_channels))))
    cfg.randomness.seed = seed
    cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = str(args.work_dir / variant / f'seed-{seed}')
    return cfg


def train(config: Path) -> None:
    """Train and evaluate a config in this process, and write the result beside it."""
    runner = build_runner(Config.fromfile(config))
    clock = time.perf_counter if DEVICE == 'cuda' else time.process_time
    start = clock()
    memory = peak_memory(runner.train, DEVICE)
    minutes = (clock() - start) / 60
    params = sum(p.numel() for p in runner.model.parameters()) / 1e6
    ap, ap50, star, twin = (
        100 * float(runner.message_hub.get_scalar(f'val/coco/{name}').current())
        for name in ('bbox_mAP', 'bbox_mAP_50', 'star_precision', 'twin_precision')
    )
    variant, seed = config.parent.name, int(config.stem.removeprefix('seed-'))
    result = Run(variant, seed, params, ap, ap50, (star + twin) / 2, minutes, memory)
    with atomic_write(config.with_suffix('.json')) as temporary:
        temporary.write_text(json.dumps(vars(result), indent=1))


def run(variant: str, seed: int, args: argparse.Namespace) -> Run:
    """Train a variant in a process of its own, unless it is trained already."""
    cfg = config_of(variant, seed, args)
    folder = Path(cfg.work_dir)
    # Not in the folder, to which MMEngine writes its own copy of the config.
    config, result = folder.with_suffix('.py'), folder.with_suffix('.json')
    if result.exists() and config.read_text() != cfg.pretty_text:
        raise SystemExit(
            f'study.py: error: {result} is of another config; '
            'remove it or choose another --work-dir'
        )
    if not result.exists():
        folder.mkdir(parents=True, exist_ok=True)
        config.write_text(cfg.pretty_text)
        with (folder / 'output.txt').open('w') as output:
            command = [sys.executable, __file__, '--train', config]
            threads = max(1, len(os.sched_getaffinity(0)) // args.jobs)
            environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
            done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        if done.returncode:
            raise SystemExit(f'study.py: error: training failed, see {output.name}')
    return Run(**json.loads(result.read_text()))


def by_variant(runs: list[Run]) -> dict[str, list[Run]]:
    found = {}
    for one in runs:
        found.setdefault(one.variant, []).append(one)
    return found


def summary(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation, which is 0 for one value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def table(runs: list[Run]) -> str:
    """A Markdown table with a row for each variant: mean ± standard deviation of its seeds."""
    titles = ['variant', 'parameters (M)', *(title for title, _ in COLUMNS.values())]
    lines = [f'| {" | ".join(titles)} |', '|---' * len(titles) + '|']
    for variant, seeds in by_variant(runs).items():
        cells = [variant, f'{seeds[0].params:.2f}']
        for name, (_, form) in COLUMNS.items():
            mean, deviation = summary([getattr(one, name) for one in seeds])
            cells.append(f'{mean:{form}}' + (f' ± {deviation:{form}}' if len(seeds) > 1 else ''))
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def plot(runs: list[Run], path: Path) -> None:
    """Plot AP with its deviation, of all classes and of those that need the whole image, and time."""
    variants = by_variant(runs)
    drawing = Figure(figsize=(15, 1.5 + 0.4 * len(variants)), layout='constrained')
    for name, axis in zip(('ap', 'relation', 'minutes'), drawing.subplots(1, 3, sharey=True)):
        means, deviations = zip(
            *(summary([getattr(one, name) for one in seeds]) for seeds in variants.values())
        )
        axis.barh(list(variants), means, xerr=deviations if any(deviations) else None, capsize=3)
        axis.set_xlabel(COLUMNS[name][0])
    axis.invert_yaxis()
    with atomic_write(path) as temporary:
        drawing.savefig(temporary, format='png', dpi=100)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--seeds', type=int, default=1, help='number of runs of each variant (default: 1)'
    )
    parser.add_argument(
        '--only',
        nargs='+',
        choices=list(VARIANTS),
        default=list(VARIANTS),
        metavar='VARIANT',
        help=f'variants to train: {", ".join(VARIANTS)} (default: all)',
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/study'),
        help='folder for the runs (default: work_dirs/study)',
    )
    jobs = 1 if DEVICE == 'cuda' else len(os.sched_getaffinity(0))
    parser.add_argument(
        '--jobs',
        type=int,
        default=jobs,
        help=f'number of trainings at once, which share the CPU cores (default here: {jobs})',
    )
    add_out(parser, plot=True)
    add_cfg_options(parser)
    add_quiet(parser)
    parser.add_argument('--train', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in ('seeds', 'jobs'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} must be at least 1, got {getattr(args, name)}')
    return args


def main() -> None:
    args = parse_args()
    if args.train:
        train(args.train)
        return
    # Seed by seed: what is there after an interruption is a comparison of all variants.
    seeds, variants = zip(*product(range(args.seeds), args.only))
    runs = []
    with progress(args.quiet) as bar, ThreadPoolExecutor(args.jobs) as pool:
        task = bar.add_task('trainings', total=len(variants))
        for done in pool.map(run, variants, seeds, [args] * len(variants)):
            runs.append(done)
            bar.advance(task)
    report(
        f'{machine(DEVICE)}, trainings at once: {args.jobs}; seeds: {args.seeds}',
        table(runs),
        runs,
        args.out,
    )
    if args.out:
        plot(runs, args.out.with_suffix('.png'))


if __name__ == '__main__':
    main()
