"""Write a model as ONNX for images of any size: ``export_onnx.py CONFIG OUT.onnx``."""

import argparse
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from soft_mm.fileio import atomic_write, load_checkpoint
from soft_mm.models.layers.landmarks import Landmarks
from soft_mm.utils import add_quiet, progress

OPSET = 20
# What traces a graph takes a side of 1 for a constant; from here on no map has one.
SMALLEST = 160
# So is a single window: here even InLine-Swin's third stage has several, of 56 tokens.
SEVERAL_WINDOWS = 1024, 1152
# Sides of which every stage's map is a whole part: for others the algebra of windows would not end.
STEP = 32
AGREE = 1e-3  # of the largest value of an output, to PyTorch's


def maps_of(backbone: nn.Module, image: Tensor) -> dict[str, Tensor]:
    outs = backbone(image)
    if backbone.out_type != 'featmap':
        return dict(zip(['features'], outs, strict=True))
    return {f'stage{i + 1}': out for i, out in zip(backbone.out_indices, outs, strict=True)}


def logits_of(classifier: nn.Module, image: Tensor) -> dict[str, Tensor]:
    return dict(logits=classifier(image))


def predictions_of(detector: nn.Module, image: Tensor) -> dict[str, Tensor]:
    return {
        f'{name}{i}': out
        for name, outs in zip(('cls_scores', 'bbox_preds'), detector(image), strict=True)
        for i, out in enumerate(outs)
    }


NETWORKS = {'ImageClassifier': logits_of, 'RetinaNet': predictions_of}


class Exported(nn.Module):
    """A model as a function of an image ``(1, 3, H, W)``, with a name for each output."""

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
    if min(size) < SMALLEST:
        raise argparse.ArgumentTypeError(
            f'{text!r} must be HxW, such as 224x288, of sides of at least {SMALLEST}'
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
    parser = argparse.ArgumentParser(description='Write a model as ONNX, for images of any size.')
    parser.add_argument('config', help='config file')
    parser.add_argument('out', type=onnx_file, help='file to write; ends in .onnx')
    parser.add_argument('--checkpoint', type=Path, help='weights; without it they are random')
    parser.add_argument(
        '--part',
        choices=['backbone', 'network'],
        default='network',
        help='network (default): up to the logits, or to the scores and boxes of every anchor',
    )
    parser.add_argument(
        '--size',
        type=image_size,
        default=(224, 288),
        metavar='HxW',
        help='image to trace; it and two others are checked; default 224x288',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='settings that override the config',
    )
    add_quiet(parser)
    return parser.parse_args()


def build(args: argparse.Namespace) -> Exported:
    """The part of the config's model that is asked for, with its weights.

    Raises:
        ValueError: for a model that has no such part or cannot be exported, or a checkpoint that is
            not its own.
        OSError: where there is no such file.
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
            f'--part network takes {" and ".join(NETWORKS)}, got {name}; --part backbone takes it'
        )
    if any(isinstance(m, Landmarks) and m.mode == 'random' for m in model.modules()):
        raise ValueError(
            "landmarks='random' draws others in every call, which no file can be "
            "checked for; 'conv' and 'avg_pool' can be exported"
        )
    if has_windows(model) and any(side % STEP for side in args.size):
        raise ValueError(
            f'{type(model.backbone).__name__} attends in windows or stripes and is '
            f'exported for sides that are multiples of {STEP}, got --size '
            f'{args.size[0]}x{args.size[1]}'
        )
    if args.part == 'backbone':
        return Exported(model.backbone, maps_of).eval()
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
    image = random_image(SEVERAL_WINDOWS if windows else size)
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
    """Raise ValueError where a runtime would need more than ONNX's own operators."""
    import onnx

    model = onnx.load(path)
    onnx.checker.check_model(model)
    foreign = {f'{node.domain}::{node.op_type}' for node in model.graph.node if node.domain}
    if foreign or model.functions:
        raise ValueError(f"the graph has operators that are not ONNX's own: {sorted(foreign)}")


def check_numbers(path: Path, part: Exported, size: tuple[int, int]) -> Iterator[str]:
    """What is found at each of three sizes.

    Raises:
        ValueError: where ONNX Runtime's outputs differ from PyTorch's.
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
                    f'{name} at {size}: ONNX Runtime gives {tuple(out.shape)}, '
                    f'PyTorch {tuple(ours.shape)}'
                )
            difference = max(difference, ((out - ours).abs().max() / ours.abs().max()).item())
            if not difference < AGREE:
                raise ValueError(
                    f'{name} at {size}: ONNX Runtime differs from PyTorch by '
                    f'{difference:.1e} of the largest value, over {AGREE}'
                )
        yield f'{size[0]}x{size[1]}: agrees with PyTorch to {difference:.1e} of the largest value'


@torch.no_grad()
def main() -> None:
    args = parse_args()
    missing = [name for name in ('onnx', 'onnxscript', 'onnxruntime') if find_spec(name) is None]
    if missing:
        raise SystemExit(f'export_onnx.py needs {", ".join(missing)}: install with pip')
    try:
        part = build(args)
        with progress(args.quiet) as bar, atomic_write(args.out) as temporary:
            task = bar.add_task('trace the model, which takes minutes', total=4)
            trace(part, args.size).save(temporary)
            check_operators(temporary)
            bar.update(task, advance=1, description='check the numbers')
            for found in check_numbers(temporary, part, args.size):
                bar.update(task, advance=1)
                if not args.quiet:
                    print(found, flush=True)
    except (ValueError, OSError) as error:
        raise SystemExit(
            f'export_onnx.py: error: {args.config}: {error}\nnothing is written to {args.out}'
        ) from None
    if not args.quiet:
        print(
            f'{args.out}: {args.out.stat().st_size / 2**20:.1f} MiB, outputs '
            f'{", ".join(part(random_image(args.size)))}'
            + ('' if args.checkpoint else '; its weights are random: no --checkpoint')
        )


if __name__ == '__main__':
    main()
