"""Check and measure everything on one GPU in under 25 minutes.

    gpu.py --out folder/name          all parts; writes folder/name.md and folder/name.json as it goes
    gpu.py --parts solver ops         some parts
    gpu.py --device cpu --quick       small sizes, to check the tool itself

- acceptance: the tests with the marker `gpu`, outputs and gradients against the CPU and references.
- backbones: images per second of inference and training in bf16, beside softmax attention by PyTorch's
  fused kernels and beside the reference backend, which computes as the authors' code does.
- solver: the ways to apply Newton's inverse, against the number of landmarks, in fp32.
- ops: each op against copy bandwidth and matrix rate, by `tools/benchmarks/ops.py`.

Each part runs in its own process and is stopped at its time limit; what it has measured until then is
kept. Times are those of the device between two events.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from soft_mm import InLineSwin
from soft_mm.analysis.benchmark import add_device, add_out, machine, milliseconds
from soft_mm.fileio import atomic_write
from soft_mm.ops import newton_inverse, newton_solve, set_backend

ROOT = Path(__file__).parents[2]
LIMITS = {'acceptance': 480, 'backbones': 600, 'solver': 90, 'ops': 300}  # seconds
REPEATS = 5
WARM_UP = 3
PVT = dict(type='mmdet.PyramidVisionTransformer', num_layers=[2, 2, 2, 2])
SWIN = dict(
    type='soft_mm.InLineSwin',
    arch={**InLineSwin.arch_zoo['tiny'], 'inline_depths': (0, 0, 0, 0)},
)
DEIT = dict(type='mmpretrain.VisionTransformer', arch='deit-tiny', out_type='featmap')
# Backbones with softmax attention, and ours that replace them.
TWINS = {
    'PVT-Tiny': (
        PVT,
        {
            'InLine-PVT-Tiny': dict(type='soft_mm.InLinePVT', arch='tiny'),
            'SOFT-Norm-Tiny': dict(type='soft_mm.SOFT', arch='tiny', sym_norm=True),
        },
    ),
    'Swin-T': (SWIN, {'InLine-Swin-T': dict(type='soft_mm.InLineSwin', arch='tiny')}),
    'DeiT-T': (DEIT, {'InLine-DeiT-T': dict(type='soft_mm.InLineDeiT', arch='tiny')}),
}
BATCHES = [(128, 224, 224), (2, 800, 1344), (8, 800, 1344)]
LANDMARKS = (49, 81, 100, 160, 256, 576, 1050)


def build(config: dict, device: str) -> nn.Module:
    with redirect_stdout(sys.stderr):  # the toolboxes print when they are imported
        import_module(f'{config["type"].split(".")[0]}.models')
    torch.manual_seed(0)
    model = MODELS.build(config).to(device)
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):  # so that PyTorch runs its fused attention
            module.forward = partial(module.forward, need_weights=False)
    return model


def device_time(step: Callable, device: str) -> float:
    """Median time of a call in milliseconds, without what the host does while the device works."""
    for _ in range(WARM_UP):
        step()
    if device != 'cuda':
        return statistics.median(milliseconds(step, device) for _ in range(REPEATS))
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def acceptance(device: str, quick: bool) -> Iterator[dict]:
    command = [sys.executable, '-m', 'pytest', '-q', '-m', 'gpu', '-p', 'no:cacheprovider', 'tests']
    done = subprocess.run(
        command + (['--collect-only'] if quick else []), cwd=ROOT, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    yield dict(
        passed=done.returncode == 0,
        summary=lines[-1] if lines else done.stderr[-2000:],
        failed=[line for line in lines if line.startswith(('FAILED', 'ERROR'))],
    )


def backbones(device: str, quick: bool) -> Iterator[dict]:
    for batch, height, width in [(1, 64, 64)] if quick else BATCHES:
        image = torch.randn(batch, 3, height, width, device=device)
        for twin, (config, replacements) in TWINS.items():
            rows = [(twin, config, None)]
            rows += [(name, ours, None) for name, ours in replacements.items()]
            rows += [
                (f'{name}, reference', ours, 'reference') for name, ours in replacements.items()
            ]
            for (name, choice, backend), mode in itertools.product(rows, ('inference', 'training')):
                case = dict(name=name, twin=twin, batch=batch, size=(height, width), mode=mode)
                try:
                    time = measure_backbone(choice, image, mode, backend, device)
                except torch.cuda.OutOfMemoryError:
                    yield case | dict(error='out of memory')
                else:
                    yield case | dict(ms=time, images_per_s=1e3 * batch / time)


def measure_backbone(
    config: dict, image: Tensor, mode: str, backend: str | None, device: str
) -> float:
    model = build(config, device)
    model.train(mode == 'training')

    def step() -> None:
        with torch.set_grad_enabled(mode == 'training'), torch.autocast(device, torch.bfloat16):
            maps = model(image)
        if mode == 'training':
            model.zero_grad()
            sum(m.float().square().mean() for m in maps).backward()

    with set_backend(backend):
        return device_time(step, device)


def solver(device: str, quick: bool) -> Iterator[dict]:
    ways = {
        'newton_solve': newton_solve,
        'newton_solve, torch': partial(newton_solve, backend='torch'),
        '20 iterations': lambda p, v, alpha: newton_inverse(p, alpha, backend='torch') @ v,
    }
    for m in LANDMARKS[:2] if quick else LANDMARKS:
        matrices = 2 if quick else 80
        landmarks = 0.7 * torch.randn(matrices, m, 32, device=device)
        p = torch.exp(-0.5 * torch.cdist(landmarks, landmarks).square())
        v = torch.randn(matrices, m, 32, device=device, requires_grad=True)
        alpha = 1.8 / p.sum(-1).amax(-1)[:, None, None].square()
        exact = newton_inverse(p.double(), alpha.double(), backend='reference') @ v.double()
        for name, way in ways.items():
            error = ((way(p, v, alpha) - exact).norm() / exact.norm()).item()
            for mode in ('forward', 'training'):
                time = device_time(partial(solve, way, p, v, alpha, mode), device)
                yield dict(way=name, m=m, matrices=matrices, mode=mode, ms=time, error=error)


def solve(way: Callable, p: Tensor, v: Tensor, alpha: Tensor, mode: str) -> None:
    with torch.set_grad_enabled(mode == 'training'):
        out = way(p, v, alpha)
    if mode == 'training':
        torch.autograd.grad(out, v, torch.ones_like(out))


def ops(device: str, quick: bool) -> Iterator[dict]:
    options = [
        '--device',
        device,
        '--quiet',
        '--dtype',
        'bfloat16' if device == 'cuda' else 'float32',
    ]
    if quick:
        options += ['--sizes', '64x64', '--stages', '1', '--only', 'dynamic_conv']
    command = [sys.executable, ROOT / 'tools/benchmarks/ops.py', *options]
    done = subprocess.run(command, capture_output=True, text=True)
    yield dict(table=done.stdout if done.returncode == 0 else done.stderr[-2000:])


PARTS = {'acceptance': acceptance, 'backbones': backbones, 'solver': solver, 'ops': ops}


def run(part: str, args: argparse.Namespace) -> Iterator[dict]:
    """Yield the results of a part, which runs in its own process, as they come."""
    command = [sys.executable, __file__, '--part', part, '--device', args.device]
    process = subprocess.Popen(
        command + (['--quick'] if args.quick else []), stdout=subprocess.PIPE, text=True
    )
    timer = threading.Timer(LIMITS[part], process.kill)
    timer.start()
    try:
        yield from map(json.loads, process.stdout)
    finally:
        stopped = not timer.is_alive()
        timer.cancel()
        process.kill()
    if process.wait():
        yield dict(error=f'stopped after {LIMITS[part]} s' if stopped else 'failed, see above')


def table(results: dict[str, list[dict]], conditions: str) -> str:
    """Markdown: one section for each part."""
    lines = [conditions]
    times = {
        (r['name'], r['batch'], tuple(r['size']), r['mode']): r['ms']
        for r in results.get('backbones', ())
        if 'ms' in r
    }
    for part, found in results.items():
        lines += ['', f'## {part}', '']
        if part == 'backbones':
            lines += ['| backbone | batch | image | mode | images/s | ms | time / twin |']
            lines += ['|---' * 7 + '|']
        elif part == 'solver':
            lines += ['| way | m | matrices | mode | ms | error to fp64 |', '|---' * 6 + '|']
        for r in found:
            if 'error' in r and 'ms' not in r or part in ('acceptance', 'ops'):
                lines += [f'{key}: {value}' for key, value in r.items()]
            elif part == 'solver':
                cells = (
                    r['way'],
                    r['m'],
                    r['matrices'],
                    r['mode'],
                    f'{r["ms"]:.3f}',
                    f'{r["error"]:.1e}',
                )
                lines.append(f'| {" | ".join(map(str, cells))} |')
            else:
                size, key = tuple(r['size']), (r['batch'], tuple(r['size']), r['mode'])
                twin = times.get((r['twin'], *key))
                cells = (
                    r['name'],
                    r['batch'],
                    f'{size[0]}×{size[1]}',
                    r['mode'],
                    f'{r["images_per_s"]:.0f}',
                    f'{r["ms"]:.2f}',
                    f'{r["ms"] / twin:.2f}' if twin else '–',
                )
                lines.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join(lines) + '\n'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_device(parser)
    parser.add_argument(
        '--parts',
        nargs='+',
        choices=list(PARTS),
        default=list(PARTS),
        help='parts to run (default: all)',
    )
    parser.add_argument(
        '--quick', action='store_true', help='small sizes, to check the tool itself'
    )
    add_out(parser, plot=False)
    parser.add_argument('--part', choices=list(PARTS), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.part:
        for result in PARTS[args.part](args.device, args.quick):
            print(json.dumps(result), flush=True)
        return
    conditions, results = machine(args.device), {}
    for part in args.parts:
        results[part] = []
        for result in run(part, args):
            results[part].append(result)
            print(f'{part}: {result}', flush=True)
            if args.out:
                text = json.dumps(dict(machine=conditions, results=results), indent=1)
                for suffix, content in (('.md', table(results, conditions)), ('.json', text)):
                    with atomic_write(args.out.with_suffix(suffix)) as file:
                        file.write_text(content)


if __name__ == '__main__':
    main()
