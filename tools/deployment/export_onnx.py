"""Export the model of a config to ONNX, for images of any size, with its pre- and post-processing."""

import argparse
import json
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from math import lcm
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from soft_mm.deployment.compare import compare
from soft_mm.deployment.networks import NETWORKS, Network, Segmentor
from soft_mm.deployment.runtimes import open_session
from soft_mm.fileio import atomic_write, load_checkpoint
from soft_mm.models.layers import SOFTAttention
from soft_mm.models.layers.landmarks import Landmarks
from soft_mm.utils import add_cfg_options, add_quiet, progress

OPSET = 20
PACKAGES = 'onnx', 'onnxscript', 'onnxruntime', 'torchvision'
# Smallest side in pixels: tracing treats dimensions of size 1 as constants, and for images of at least
# this size no feature map has one.
MIN_SIDE = 160
# Tracing also treats a single window as constant. At this size even the third stage of InLine-Swin,
# whose windows have a side of 56 tokens, has several.
WINDOWED_SIZE = 1024, 1152
# Models with windows need sides that every stride divides; for others, tracing does not terminate.
STEP = 32
SLOW = (
    'model.backbone.num_landmarks=None: the number m of landmarks grows with the image, to 1050 at '
    "800×1344, and the exported solver='newton' takes 28·m³ flops per head where PyTorch takes m³. For "
    'fast files, train with model.backbone.num_landmarks=49'
)


class Backbone(nn.Module):
    """Maps normalised pixels to the named outputs of a backbone."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.names = (
            [f'stage{i + 1}' for i in backbone.out_indices]
            if backbone.out_type == 'featmap'
            else ['features']
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, self.backbone(image), strict=True))


def image_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    size = tuple(map(int, match.groups())) if match else (0, 0)
    if min(size) < MIN_SIDE:
        raise argparse.ArgumentTypeError(
            f'{text!r} must be HxW with sides of at least {MIN_SIDE} pixels, such as 224x288'
        )
    return size


def onnx_file(name: str) -> Path:
    path = Path(name)
    if path.suffix != '.onnx':
        raise argparse.ArgumentTypeError(f'{name!r} must end in .onnx')
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f'{name!r}: there is no folder {path.parent}')
    if path.is_dir():
        raise argparse.ArgumentTypeError(f'{name!r} is a folder')
    return path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('out', type=onnx_file, help='file to write, ending in .onnx')
    parser.add_argument(
        '--checkpoint', type=Path, help='file with the weights (default: random weights)'
    )
    parser.add_argument(
        '--part',
        choices=['backbone', 'network'],
        default='network',
        help='backbone, or network with its pre- and post-processing (default)',
    )
    parser.add_argument(
        '--size',
        type=image_size,
        default=(224, 288),
        metavar='HxW',
        help='image size in pixels to trace; two other sizes are also checked (default: 224x288)',
    )
    add_cfg_options(parser)
    add_quiet(parser)
    return parser.parse_args()


def build(args: argparse.Namespace) -> tuple[Backbone | Network, dict]:
    """Build the requested part of the config's model, and load its weights and their meta data.

    Raises:
        ValueError: if the model or the requested part cannot be exported, or the checkpoint does
            not fit the model.
        OSError: if a file does not exist.
    """
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    MMLogger.get_current_instance().setLevel('WARNING')
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = MODELS.build(cfg.model).eval()
    meta = load(model, args.checkpoint) if args.checkpoint else {}
    name = type(model).__name__
    if args.part == 'network' and name not in NETWORKS:
        raise ValueError(
            f'--part network supports {", ".join(NETWORKS)}, got {name}; use --part backbone'
        )
    if any(isinstance(m, Landmarks) and m.mode == 'random' for m in model.modules()):
        raise ValueError(
            "landmarks='random' cannot be exported, because it draws new landmarks in every "
            "call; landmarks must be 'conv', 'avg_pool' or 'biased'"
        )
    part = (Backbone(model.backbone) if args.part == 'backbone' else Network(model)).eval()
    if has_windows(model) and not pads(part) and any(side % STEP for side in args.size):
        raise ValueError(
            f'--size must be multiples of {STEP} for {type(model.backbone).__name__}, which attends '
            f'in windows or stripes, got {args.size[0]}x{args.size[1]}'
        )
    if any(
        isinstance(m, SOFTAttention) and m.solver == 'newton' and not m.landmarks.num_landmarks
        for m in model.modules()
    ):
        print(f'export_onnx.py: warning: {args.config}: {SLOW}', file=sys.stderr)
    return part, meta


def pads(part: Backbone | Network) -> bool:
    """Whether the exported file pads images to multiples of STEP."""
    return isinstance(part, Network) and part.preprocessing.divisor % STEP == 0


def has_windows(model: nn.Module) -> bool:
    return any(
        getattr(m, 'window_size', None) or getattr(m, 'stripe_size', None) for m in model.modules()
    )


def load(model: nn.Module, path: Path) -> dict:
    """Load the weights of a checkpoint and return its meta data."""
    try:
        checkpoint = load_checkpoint(path)
        if not isinstance(checkpoint, dict):
            raise ValueError(f'holds a {type(checkpoint).__name__}, not a dict')
        model.load_state_dict(checkpoint.get('state_dict', checkpoint), strict=True)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f'--checkpoint {path}: {error}') from None
    return checkpoint.get('meta', {})


def trace(part: Backbone | Network, size: tuple[int, int]):
    """Trace a part and return it as ``onnx.ModelProto``."""
    from onnx import compose

    windows = has_windows(part)
    inputs = random_inputs(part, WINDOWED_SIZE if windows else size)
    step = STEP if windows else 1
    if isinstance(part, Backbone):
        return export(part, inputs, step)
    step = lcm(step, part.preprocessing.divisor)
    image = inputs.pop('image')
    preprocessing = compose.add_prefix(
        export(part.preprocessing, dict(image=image), 1),
        'preprocessing/',
        rename_inputs=False,
        rename_outputs=False,
    )
    pixels = part.preprocessing(image)
    core = export(part.core, {**pixels, **inputs}, step)
    return compose.merge_models(preprocessing, core, io_map=[(name, name) for name in pixels])


def export(module: nn.Module, inputs: dict[str, Tensor], step: int):
    """Trace a module for images with sides of any multiple of ``step`` pixels."""
    suffix = f'_by_{step}' if step > 1 else ''
    sides = [step * torch.export.Dim(name + suffix, min=2) for name in ('height', 'width')]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # PyTorch warns of what it does itself
        program = torch.onnx.export(
            module,
            kwargs=inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(module(**inputs)),
            verbose=False,
            dynamic_shapes={
                name: {2: sides[0], 3: sides[1]} if value.ndim == 4 else {}
                for name, value in inputs.items()
            },
        )
    return program.model_proto


def random_inputs(part: Backbone | Network, size: tuple[int, int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = 1, 3, *size
    if isinstance(part, Backbone):
        return dict(image=torch.randn(shape, generator=generator))
    image = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    if isinstance(part.core, Segmentor):
        return dict(image=image, size=torch.tensor(size) + 7)
    return dict(image=image)


def save(model, meta: dict, path: Path) -> None:
    """Save ``onnx.ModelProto`` with the classes and colours of the checkpoint's meta data.

    Raises:
        ValueError: if the graph contains operators outside the ONNX standard.
    """
    import onnx

    onnx.checker.check_model(model)
    foreign = {f'{node.domain}::{node.op_type}' for node in model.graph.node if node.domain}
    if foreign or model.functions:
        raise ValueError(f'the graph has operators outside the ONNX standard: {sorted(foreign)}')
    if dataset_meta := meta.get('dataset_meta'):
        classes = {key: dataset_meta.get(key) for key in ('classes', 'palette')}
        onnx.helper.set_model_props(model, dict(dataset_meta=json.dumps(classes)))
    onnx.save(model, path)


def check_numbers(path: Path, part: Backbone | Network, size: tuple[int, int]) -> Iterator[str]:
    """Compare ONNX Runtime with PyTorch at three image sizes and yield a line for each.

    Raises:
        ValueError: if an output differs.
    """
    height, width = size
    more = STEP if has_windows(part) else 45
    with all_scores(part, path) as content:
        session = open_session(content)
        for size in (height, width), (width + more, height), (2 * height - more, width + STEP):
            inputs = random_inputs(part, size)
            outputs = session.run({name: x.numpy() for name, x in inputs.items()})
            theirs = {name: torch.from_numpy(x) for name, x in outputs.items()}
            at = f'{size[0]}x{size[1]}'
            try:
                line = compare(part(**inputs), theirs)
            except ValueError as error:
                raise ValueError(f'ONNX Runtime at {at}: {error}') from None
            yield f'{at}: {line}'


@contextmanager
def all_scores(part: Backbone | Network, path: Path) -> Iterator[bytes]:
    """Yield the content of the file, where detections of all scores are kept, as in ``part``.

    There would be none to compare in random images otherwise.
    """
    import onnx

    score_thr = getattr(getattr(part, 'core', None), 'score_thr', None)
    if not score_thr:
        yield path.read_bytes()
        return
    model, before = onnx.load(path), score_thr.clone()
    (constant,) = (t for t in model.graph.initializer if t.name == 'score_thr')
    constant.CopyFrom(onnx.numpy_helper.from_array(score_thr.zero_().numpy(), constant.name))
    try:
        yield model.SerializeToString()
    finally:
        score_thr.copy_(before)


@torch.no_grad()
def main() -> None:
    args = parse_args()
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise SystemExit(f'export_onnx.py needs {", ".join(missing)}: install them with pip')
    try:
        part, meta = build(args)
        with progress(args.quiet) as bar, atomic_write(args.out) as temporary:
            task = bar.add_task('trace the model (takes minutes)', total=4)
            save(trace(part, args.size), meta, temporary)
            bar.update(task, advance=1, description='compare with PyTorch')
            for line in check_numbers(temporary, part, args.size):
                bar.update(task, advance=1)
                if not args.quiet:
                    print(line, flush=True)
    except (ValueError, OSError) as error:
        raise SystemExit(
            f'export_onnx.py: error: {args.config}: {error}\nnothing was written to {args.out}'
        ) from None
    if not args.quiet:
        print(
            f'{args.out}: {args.out.stat().st_size / 2**20:.1f} MiB, outputs '
            f'{", ".join(open_session(args.out).outputs)}'
            + (
                ''
                if args.checkpoint
                else '; the weights are random, because no --checkpoint was given'
            )
        )


if __name__ == '__main__':
    main()
