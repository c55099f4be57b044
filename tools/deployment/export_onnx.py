"""Export the model of a config to ONNX, for images of any size."""

import argparse
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from soft_mm.fileio import atomic_write, load_checkpoint
from soft_mm.models.layers.landmarks import Landmarks
from soft_mm.utils import add_cfg_options, add_quiet, progress

OPSET = 20
# Smallest side in pixels: tracing treats dimensions of size 1 as constants, and for images of at least
# this size no feature map has one.
MIN_SIDE = 160
# Tracing also treats a single window as constant. At this size even the third stage of InLine-Swin,
# whose windows have a side of 56 tokens, has several.
WINDOWED_SIZE = 1024, 1152
# Models with windows need sides that every stride divides; for others, tracing does not terminate.
STEP = 32
TOLERANCE = 1e-3  # largest difference from PyTorch, relative to the largest value of an output


def backbone_outputs(backbone: nn.Module, image: Tensor) -> dict[str, Tensor]:
    outs = backbone(image)
    if backbone.out_type != 'featmap':
        return dict(zip(['features'], outs, strict=True))
    return {f'stage{i + 1}': out for i, out in zip(backbone.out_indices, outs, strict=True)}


def classifier_outputs(classifier: nn.Module, image: Tensor) -> dict[str, Tensor]:
    return dict(logits=classifier(image))


def detector_outputs(detector: nn.Module, image: Tensor) -> dict[str, Tensor]:
    return {
        f'{name}{i}': out
        for name, outs in zip(('cls_scores', 'bbox_preds'), detector(image), strict=True)
        for i, out in enumerate(outs)
    }


NETWORKS = {'ImageClassifier': classifier_outputs, 'RetinaNet': detector_outputs}


class Exported(nn.Module):
    """Maps an image ``(1, 3, H, W)`` to the named outputs of a model."""

    def __init__(
        self, model: nn.Module, outputs: Callable[[nn.Module, Tensor], dict[str, Tensor]]
    ) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.outputs(self.model, image)


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
        help='backbone, or network up to the logits or the scores and boxes of every anchor (default)',
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


def build(args: argparse.Namespace) -> Exported:
    """Build the requested part of the config's model and load its weights.

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
    if args.checkpoint:
        load(model, args.checkpoint)
    name = type(model).__name__
    if args.part == 'network' and name not in NETWORKS:
        raise ValueError(
            f'--part network supports {" and ".join(NETWORKS)}, got {name}; use --part backbone'
        )
    if any(isinstance(m, Landmarks) and m.mode == 'random' for m in model.modules()):
        raise ValueError(
            "landmarks='random' cannot be exported, because it draws new landmarks in every "
            "call; landmarks must be 'conv', 'avg_pool' or 'biased'"
        )
    if has_windows(model) and any(side % STEP for side in args.size):
        raise ValueError(
            f'--size must be multiples of {STEP} for {type(model.backbone).__name__}, which attends '
            f'in windows or stripes, got {args.size[0]}x{args.size[1]}'
        )
    if args.part == 'backbone':
        return Exported(model.backbone, backbone_outputs).eval()
    return Exported(model, NETWORKS[name]).eval()


def has_windows(model: nn.Module) -> bool:
    return any(
        getattr(m, 'window_size', None) or getattr(m, 'stripe_size', None) for m in model.modules()
    )


def load(model: nn.Module, path: Path) -> None:
    try:
        checkpoint = load_checkpoint(path)
        if not isinstance(checkpoint, dict):
            raise ValueError(f'holds a {type(checkpoint).__name__}, not a dict')
        model.load_state_dict(checkpoint.get('state_dict', checkpoint), strict=True)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f'--checkpoint {path}: {error}') from None


def trace(part: Exported, size: tuple[int, int]) -> torch.onnx.ONNXProgram:
    windows = has_windows(part)
    image = random_image(WINDOWED_SIZE if windows else size)
    sides = [
        (STEP if windows else 1) * torch.export.Dim(name, min=2) for name in ('height', 'width')
    ]
    return torch.onnx.export(
        part,
        (image,),
        dynamo=True,
        opset_version=OPSET,
        input_names=['image'],
        output_names=list(part(image)),
        verbose=False,
        dynamic_shapes=[{2: sides[0], 3: sides[1]}],
    )


def random_image(size: tuple[int, int]) -> Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))


def check_operators(path: Path) -> None:
    """Raise ValueError if the graph contains operators outside the ONNX standard."""
    import onnx

    model = onnx.load(path)
    onnx.checker.check_model(model)
    foreign = {f'{node.domain}::{node.op_type}' for node in model.graph.node if node.domain}
    if foreign or model.functions:
        raise ValueError(f'the graph has operators outside the ONNX standard: {sorted(foreign)}')


def check_numbers(path: Path, part: Exported, size: tuple[int, int]) -> Iterator[str]:
    """Compare ONNX Runtime with PyTorch at three image sizes and yield a line for each.

    Raises:
        ValueError: if an output differs.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    height, width = size
    more = STEP if has_windows(part) else 45
    for size in (height, width), (width + more, height), (2 * height - more, width + STEP):
        image = random_image(size)
        theirs = session.run(None, dict(image=image.numpy()))
        difference = 0.0
        for (name, ours), out in zip(part(image).items(), theirs, strict=True):
            out = torch.from_numpy(out)
            if out.shape != ours.shape:
                raise ValueError(
                    f'{name} at {size}: ONNX Runtime returns shape {tuple(out.shape)}, '
                    f'PyTorch {tuple(ours.shape)}'
                )
            difference = max(difference, ((out - ours).abs().max() / ours.abs().max()).item())
            if not difference < TOLERANCE:
                raise ValueError(
                    f'{name} at {size}: ONNX Runtime differs from PyTorch by '
                    f'{difference:.1e} of the largest value, allowed is {TOLERANCE}'
                )
        yield f'{size[0]}x{size[1]}: agrees with PyTorch to {difference:.1e} of the largest value'


@torch.no_grad()
def main() -> None:
    args = parse_args()
    missing = [name for name in ('onnx', 'onnxscript', 'onnxruntime') if find_spec(name) is None]
    if missing:
        raise SystemExit(f'export_onnx.py needs {", ".join(missing)}: install them with pip')
    try:
        part = build(args)
        with progress(args.quiet) as bar, atomic_write(args.out) as temporary:
            task = bar.add_task('trace the model (takes minutes)', total=4)
            trace(part, args.size).save(temporary)
            check_operators(temporary)
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
            f'{", ".join(part(random_image(args.size)))}'
            + (
                ''
                if args.checkpoint
                else '; the weights are random, because no --checkpoint was given'
            )
        )


if __name__ == '__main__':
    main()
