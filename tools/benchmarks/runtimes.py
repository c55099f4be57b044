"""Compare the speed of a whole network in PyTorch, ONNX Runtime and OpenVINO, on the CPU.

    export_onnx.py CONFIG MODEL.onnx                 first: random weights will do
    runtimes.py CONFIG MODEL.onnx --size 800x1216    PyTorch beside the runtimes that are installed

The image is random. The runtimes take turns, so that they meet the same load of the machine, and every
time is the median. Preprocessing and post-processing count; reading and drawing do not.
"""

import argparse
import statistics
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope

from soft_mm.analysis.benchmark import machine, milliseconds, size_of
from soft_mm.deployment.networks import Network
from soft_mm.deployment.runtimes import RUNTIMES, open_session
from soft_mm.utils import add_cfg_options, add_quiet, progress


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file that the model was exported with')
    parser.add_argument('model', type=Path, help='file of export_onnx.py')
    parser.add_argument(
        '--size',
        type=size_of,
        default=(800, 1216),
        metavar='HxW',
        help='image size in pixels (default: 800x1216)',
    )
    parser.add_argument(
        '--turns', type=int, default=5, help='measured turns of each (default: %(default)s)'
    )
    parser.add_argument(
        '--threads', type=int, default=torch.get_num_threads(), help='threads (default: all cores)'
    )
    add_cfg_options(parser)
    add_quiet(parser)
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    MMLogger.get_current_instance().setLevel('ERROR')
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    init_default_scope(cfg.default_scope)
    network = Network(MODELS.build(cfg.model)).eval()
    inputs = dict(image=torch.randint(256, (1, 3, *args.size), dtype=torch.uint8))
    steps = {}
    for runtime in filter(find_spec, RUNTIMES):
        session = open_session(args.model, runtime, args.threads)
        if 'size' in session.inputs:
            inputs['size'] = torch.tensor(args.size)
        arrays = {name: value.numpy() for name, value in inputs.items()}
        steps[runtime] = partial(session.run, arrays)
    steps = {'pytorch': partial(network, **inputs), **steps}
    times = {name: [] for name in steps}
    with progress(args.quiet) as bar:
        for turn in bar.track(range(args.turns + 1), description='turns'):
            for name, step in steps.items():
                elapsed = milliseconds(step, 'cpu')
                if turn:  # the first one allocates, and tunes
                    times[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f'{machine("cpu")}; {args.model.name} at {args.size[0]}x{args.size[1]}')
    for name, median in medians.items():
        print(f'{name}: {median:.0f} ms, {median / medians["pytorch"]:.2f} of PyTorch')


if __name__ == '__main__':
    main()
