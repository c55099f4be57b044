"""Compare the speed of whole networks in PyTorch, ONNX Runtime and OpenVINO, on the CPU.

    runtimes.py                           print a table of all cases on this machine
    runtimes.py --out folder/name         also write folder/name.md and name.json
    runtimes.py CONFIG --size 800x1216    only this network

Each network is exported first, with random weights, which takes minutes. Then PyTorch and the runtimes
that are installed predict the same random image in turns, because the speed of a machine drifts; a
ratio is the median of those of the turns. Preprocessing and post-processing count; reading and drawing
do not. The benchmark fails if a runtime does not predict what PyTorch predicts.
"""

import argparse
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from rich.progress import Progress

from soft_mm.analysis.benchmark import (
    add_out,
    machine,
    median_ratio,
    milliseconds,
    report,
    size_of,
)
from soft_mm.deployment.compare import compare
from soft_mm.deployment.networks import Network
from soft_mm.deployment.runtimes import RUNTIMES, open_session
from soft_mm.utils import add_cfg_options, add_quiet, progress

ROOT = Path(__file__).parents[2]
NAMES = dict(pytorch='PyTorch', onnxruntime='ONNX Runtime', openvino='OpenVINO')


class Case(NamedTuple):
    """A network to measure.

    Attributes:
        config: its config.
        size: height and width of the image.
        options: overridden settings of the config.
    """

    config: Path
    size: tuple[int, int]
    options: dict = {}


def coco(config: str, **options) -> Case:
    return Case(ROOT / f'configs/coco/{config}_fpn_1x_coco.py', (800, 1216), options)


def ade20k(config: str, **options) -> Case:
    path = ROOT / f'configs/ade20k/{config}_upernet_8xb2-160k_ade20k-512x512.py'
    return Case(path, (512, 683), options)


FEW = {'model.backbone.num_landmarks': 49}
CASES = {
    'RetinaNet, SOFT-Norm-Tiny': coco('retinanet_soft-norm-tiny'),
    'RetinaNet, SOFT-Norm-Tiny, 49 landmarks': coco('retinanet_soft-norm-tiny', **FEW),
    'RetinaNet, InLine-PVT-Tiny': coco('retinanet_inline-pvt-tiny'),
    'Mask R-CNN, SOFT-Norm-Tiny, 49 landmarks': coco('mask-rcnn_soft-norm-tiny', **FEW),
    'UperNet, SOFT-Norm-Tiny, 49 landmarks': ade20k('soft-norm-tiny', **FEW),
}


@dataclass
class Measured:
    """Results of one network in one runtime: time of each turn in ms, and how far it agrees."""

    case: str
    size: tuple[int, int]
    runtime: str
    times: list[float] = field(default_factory=list)
    agreement: str | None = None

    @property
    def time(self) -> float:
        return statistics.median(self.times)


def export(case: Case, folder: Path) -> tuple[Network, Path]:
    """Build a network with random weights; return it and its ONNX file in the folder."""
    cfg = Config.fromfile(case.config)
    cfg.merge_from_dict(case.options)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    for name, parameter in model.named_parameters():
        if name.endswith('fc_cls.bias'):
            # Every region gets a high score for one class, so that the mask head has work to do.
            parameter[0] += 5
    config, weights, file = (folder / f'network{suffix}' for suffix in ('.py', '.pth', '.onnx'))
    cfg.dump(config)
    torch.save(dict(state_dict=model.state_dict()), weights)
    tool = ROOT / 'tools/deployment/export_onnx.py'
    command = sys.executable, tool, config, file, '--checkpoint', weights, '--quiet'
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f'{case.config}: {done.stderr[-2000:]}')
    return Network(model).eval(), file


def measure(name: str, case: Case, args: argparse.Namespace, bar: Progress) -> list[Measured]:
    """Time a network in PyTorch and in the runtimes, in turns."""
    task = bar.add_task(f'{name}: export (minutes)', total=args.turns)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (1, 3, *case.size), generator=generator, dtype=torch.uint8)
    with TemporaryDirectory() as folder:
        network, file = export(case, Path(folder))
        sessions = {
            runtime: open_session(file, runtime, args.threads)
            for runtime in filter(find_spec, RUNTIMES)
        }
    inputs = dict(image=image)
    if any('size' in session.inputs for session in sessions.values()):
        inputs['size'] = torch.tensor(case.size)
    arrays = {key: value.numpy() for key, value in inputs.items()}
    steps = {
        'pytorch': partial(network, **inputs),
        **{runtime: partial(session.run, arrays) for runtime, session in sessions.items()},
    }
    results = [Measured(name, case.size, runtime) for runtime in steps]
    # The first run allocates, and tunes.
    expected, *found = (step() for step in steps.values())
    for result, outputs in zip(results[1:], found):
        outputs = {key: torch.from_numpy(array) for key, array in outputs.items()}
        try:
            result.agreement = compare(expected, outputs)
        except ValueError as error:
            raise ValueError(
                f'{name} in {NAMES[result.runtime]}: {error}; its time is not reported'
            ) from None
    bar.update(task, description=name)
    for _ in range(args.turns):
        for result, step in zip(results, steps.values()):
            result.times.append(milliseconds(step, 'cpu'))
        bar.advance(task)
    return results


def table(results: list[Measured]) -> str:
    """A Markdown table with a row for each network."""
    runtimes = list(dict.fromkeys(result.runtime for result in results))
    heads = [
        'network',
        'image',
        *(f'{NAMES[runtime]} (ms)' for runtime in runtimes),
        *(f'{NAMES[runtime]} / PyTorch' for runtime in runtimes[1:]),
    ]
    lines = [f'| {" | ".join(heads)} |', '|---' * len(heads) + '|']
    for start in range(0, len(results), len(runtimes)):
        row = results[start : start + len(runtimes)]
        cells = [
            row[0].case,
            '{}×{}'.format(*row[0].size),
            *(f'{result.time:.0f}' for result in row),
            *(f'{median_ratio(result.times, row[0].times):.2f}' for result in row[1:]),
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', nargs='?', type=Path, help='config file (default: all cases)')
    parser.add_argument(
        '--size',
        type=size_of,
        default=(800, 1216),
        metavar='HxW',
        help='image size in pixels for CONFIG (default: 800x1216)',
    )
    parser.add_argument(
        '--only',
        nargs='+',
        metavar='PART',
        help='measure only cases whose name contains a PART (default: all)',
    )
    parser.add_argument(
        '--turns', type=int, default=5, help='measured turns of each (default: %(default)s)'
    )
    parser.add_argument(
        '--threads', type=int, default=torch.get_num_threads(), help='threads (default: all cores)'
    )
    add_out(parser, plot=False)
    add_cfg_options(parser)
    add_quiet(parser)
    args = parser.parse_args()
    if args.cfg_options and not args.config:
        parser.error('--cfg-options is for CONFIG, and there is none')
    return args


@torch.no_grad()
def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    MMLogger.get_current_instance().setLevel('ERROR')
    if args.config:
        cases = {args.config.stem: Case(args.config, args.size, args.cfg_options)}
    else:
        cases = {
            name: case
            for name, case in CASES.items()
            if not args.only or any(part in name for part in args.only)
        }
    try:
        with progress(args.quiet) as bar:
            results = [r for name, case in cases.items() for r in measure(name, case, args, bar)]
    except (ValueError, OSError) as error:
        raise SystemExit(f'runtimes.py: error: {error}') from None
    versions = [f'{NAMES[name]} {version(name)}' for name in filter(find_spec, RUNTIMES)]
    conditions = f'{"; ".join([machine("cpu"), *versions])}; fp32, batch 1'
    report(conditions, table(results), results, args.out)


if __name__ == '__main__':
    main()
