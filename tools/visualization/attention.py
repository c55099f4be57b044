"""Show what the tokens of an image attend to: a page to click in, or a picture of one query."""

import argparse
import base64
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from soft_mm.analysis.attention import AttentionCall, record_attention
from soft_mm.fileio import atomic_write, set_checkpoint_reader
from soft_mm.fileio.checkpoints import checkpoint_of_this_model
from soft_mm.models.backbones import Backbone
from soft_mm.ops.shapes import ceil_div
from soft_mm.utils import add_cfg_options, add_trust_pickle

TEMPLATE = Path(__file__).with_suffix('.html')
# A page has to stay small: it holds the rows of at most this many queries per side of a feature map,
# averaged to at most this many cells per side.
QUERIES, CELLS = 16, 32
STEPS = 127  # between a weight of 0 and the largest of a row
COLOURS = dict(positive=(178, 24, 43), negative=(33, 102, 172))  # RGB


@dataclass
class View:
    """What a model sees of an image, and how it attends to it.

    Attributes:
        title (str): names of the config and the checkpoint.
        picture (np.ndarray): the image as the config's test pipeline resizes and crops it,
            ``(H, W, 3)`` uint8, BGR.
        size (tuple[int, int]): height and width of the model's input, which may be padded at the
            right and bottom.
        calls (list[AttentionCall]): the layers to show.
    """

    title: str
    picture: np.ndarray
    size: tuple[int, int]
    calls: list[AttentionCall]


def file_type(suffix: str) -> Callable[[str], Path]:
    """An argparse type for a file to write."""

    def parse(name: str) -> Path:
        path = Path(name)
        if path.suffix != suffix:
            raise argparse.ArgumentTypeError(f'{name!r} must end in {suffix}')
        if not path.parent.is_dir():
            raise argparse.ArgumentTypeError(f'{name!r}: there is no folder {path.parent}')
        return path

    return parse


def layer_name(text: str) -> str:
    if not re.fullmatch(r'all|\d+\.\d+', text):
        raise argparse.ArgumentTypeError(f'{text!r} must be all or STAGE.BLOCK, such as 3.1')
    return text


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, of any task')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('image', type=Path, help='image file')
    parser.add_argument(
        '--compare',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='show a second model beside the first',
    )
    parser.add_argument(
        '--out', type=file_type('.html'), metavar='FILE', help='page to write, ending in .html'
    )
    parser.add_argument(
        '--png',
        type=file_type('.png'),
        metavar='FILE',
        help='picture of one query to write, ending in .png',
    )
    parser.add_argument(
        '--query',
        type=int,
        nargs=2,
        metavar=('Y', 'X'),
        help="query of the picture, and the page's first: row and column of a pixel of the resized "
        'image (default: its centre)',
    )
    parser.add_argument(
        '--layers',
        type=layer_name,
        nargs='+',
        metavar='STAGE.BLOCK',
        help='layers to show, counted from 1.1, or all (default: the last of each stage)',
    )
    parser.add_argument(
        '--head', type=int, help='head of the picture, counted from 1 (default: mean of all heads)'
    )
    add_trust_pickle(parser)
    add_cfg_options(parser)
    args = parser.parse_args()
    if not (args.out or args.png):
        parser.error('--out or --png must name a file to write')
    return args


def load_model(cfg: Config, checkpoint: str) -> nn.Module:
    """Build the config's model and load its weights.

    Raises:
        ValueError: if the model has no backbone of soft_mm, or the checkpoint is of another model.
        OSError: if there is no checkpoint.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    if 'data_preprocessor' in cfg:  # as MMEngine's runner does
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(cfg.model).eval()
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, Backbone):
        allowed = ', '.join(cls.__name__ for cls in Backbone.__subclasses__())
        raise ValueError(
            f'{cfg.filename}: model.backbone must be one of soft_mm ({allowed}), '
            f'got {type(backbone).__name__}'
        )
    with checkpoint_of_this_model(checkpoint):
        load_checkpoint(model, checkpoint, 'cpu', strict=True)
    return model


def load_image(cfg: Config, model: nn.Module, path: Path) -> tuple[np.ndarray, Tensor]:
    """Read an image as the config's test pipeline does.

    Returns:
        The picture ``(H, W, 3)``, uint8 and BGR, and the model's input ``(1, 3, H, W)``.

    Raises:
        ValueError: if the file is not an image.
        OSError: if there is no file.
    """
    if not path.is_file():
        raise FileNotFoundError(f'there is no image {path}')
    if not cv2.haveImageReader(str(path)):
        raise ValueError(f'{path} is not an image that OpenCV can read')
    steps = cfg.test_dataloader.dataset.pipeline
    pipeline = Compose([step for step in steps if 'Annotations' not in step['type']])
    sample = pipeline(dict(img_path=str(path), img_id=0))
    inputs = model.data_preprocessor(pseudo_collate([sample]), False)['inputs']
    return sample['inputs'].permute(1, 2, 0).numpy(), inputs


def select(calls: list[AttentionCall], wanted: list[str] | None) -> list[AttentionCall]:
    """The layers named ``STAGE.BLOCK``; by default the last of each stage.

    Raises:
        ValueError: if there is no such layer; names those there are.
    """
    if not wanted:
        return list({call.stage: call for call in calls}.values())
    if 'all' in wanted:
        return calls
    names = {f'{call.stage + 1}.{call.block + 1}': call for call in calls}
    if missing := [name for name in wanted if name not in names]:
        raise ValueError(f'--layers must be all or some of {" ".join(names)}, got {missing[0]}')
    return [names[name] for name in wanted]


def make_view(config: str, checkpoint: str, args: argparse.Namespace) -> View:
    """Run the model of a config on the image."""
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(args.cfg_options)
    if missing := [field for field in ('model', 'test_dataloader') if field not in cfg]:
        raise ValueError(f'{config} has no {missing[0]}')
    model = load_model(cfg, checkpoint)
    picture, inputs = load_image(cfg, model, args.image)
    calls = select(record_attention(model.backbone, inputs), args.layers)
    title = f'{Path(config).stem}, {Path(checkpoint).name}'
    return View(title, picture, tuple(inputs.shape[-2:]), calls)


def layer_title(call: AttentionCall) -> str:
    return f'stage {call.stage + 1}, block {call.block + 1}: {type(call.layer).__name__}'


def with_mean(heads: Tensor) -> Tensor:
    """Put the mean of the heads before them: ``(h, ...)`` -> ``(1 + h, ...)``."""
    return torch.cat((heads.mean(0, keepdim=True), heads))


def encode(values: Tensor) -> str:
    return base64.b64encode(zlib.compress(values.contiguous().numpy().tobytes(), 9)).decode()


def spread(side: int) -> list[int]:
    """At most QUERIES evenly spaced positions of a side; all of them if there are no more."""
    number = min(side, QUERIES)
    return [(2 * i + 1) * side // (2 * number) for i in range(number)]


def layer_data(call: AttentionCall) -> dict:
    """What the page shows of a layer: for each head and query the row, in cells, and numbers."""
    extra, (h, w) = call.num_extra, call.hw
    ys, xs = spread(h), spread(w)
    queries = torch.tensor([*range(extra), *(extra + y * w + x for y in ys for x in xs)])
    rows = with_mean(call.rows(queries)[0])
    cell = ceil_div(max(h, w), CELLS)
    maps = F.avg_pool2d(rows[..., extra:].unflatten(-1, (h, w)), cell, ceil_mode=True)
    cells = maps.flatten(-2)
    scales = cells.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(cells.dtype).tiny) / STEPS
    numbers = (rows.amax(-1), rows.amin(-1), rows.sum(-1), *rows[..., :extra].unbind(-1))
    data = dict(
        title=layer_title(call),
        stride=call.stride,
        hw=[h, w],
        ys=ys,
        xs=xs,
        heads=len(rows) - 1,
        extra=extra,
        cell=cell,
        grid=list(maps.shape[-2:]),
        cells=encode((cells / scales).round().char()),
        scales=encode(scales),
        numbers=encode(torch.stack(numbers, -1)),
    )
    if (filters := call.filters(queries)) is not None:
        # The mean over the channels of a head, which share the head's rows.
        data['filters'] = encode(with_mean(filters[0].mean(2).transpose(0, 1)))
        data['filter_size'] = filters.shape[-1]
    return data


def page(views: list[View], query: tuple[float, float]) -> str:
    """The page; ``query`` is the first query, in heights and widths of the picture."""
    models = []
    for v in views:
        _, jpeg = cv2.imencode('.jpg', v.picture)
        models.append(
            dict(
                title=v.title,
                image=f'data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}',
                picture=v.picture.shape[:2],
                size=v.size,
                layers=[layer_data(call) for call in v.calls],
            )
        )
    data = json.dumps(dict(query=query, steps=STEPS, colours=COLOURS, models=models))
    return TEMPLATE.read_text('utf-8').replace('@DATA@', data.replace('</', r'<\/'))


def figure(views: list[View], query: tuple[float, float], head: int | None) -> Figure:
    """One row of maps per model, one map per layer: the exact weights of one query.

    Raises:
        ValueError: if a layer does not have the head.
    """
    columns = max(len(v.calls) for v in views)
    drawing = Figure(figsize=(3 * columns, 3.4 * len(views)), layout='constrained')
    parts = drawing.subfigures(len(views), 1, squeeze=False)[:, 0]
    for v, part in zip(views, parts):
        part.suptitle(v.title)
        axes = part.subplots(1, columns, squeeze=False)[0]
        height, width = v.picture.shape[:2]
        y, x = query[0] * height, query[1] * width
        grey = 127.5 + v.picture.mean(-1) / 2
        for axis in axes:
            axis.set_axis_off()
        for axis, call in zip(axes, v.calls):
            h, w = call.hw
            token = call.num_extra + int(y // call.stride) * w + int(x // call.stride)
            rows = with_mean(call.rows(torch.tensor([token]))[0])
            if head is not None and not 1 <= head < len(rows):
                raise ValueError(
                    f'--head must be from 1 to {len(rows) - 1} in {layer_title(call)}, got {head}'
                )
            row = rows[head or 0, 0].numpy()
            weights = row[call.num_extra :].reshape(h, w, 1)
            colours = np.where(weights < 0, COLOURS['negative'], COLOURS['positive']) / 255
            opacity = np.abs(weights) / np.abs(weights).max()
            axis.imshow(grey, 'gray', vmin=0, vmax=255, extent=(0, width, height, 0))
            axis.imshow(
                np.concatenate((colours, opacity), -1),
                extent=(0, w * call.stride, h * call.stride, 0),
            )
            axis.plot(x, y, 'o', color='black', markerfacecolor='white')
            axis.set(xlim=(0, v.size[1]), ylim=(v.size[0], 0))
            numbers = f'{row.min():.2g} to {row.max():.2g}, sum {row.sum():.3g}'
            axis.set_title(f'{layer_title(call)}\n{numbers}', fontsize=8)
    return drawing


@torch.no_grad()
def main() -> None:
    args = parse_args()
    MMLogger.get_current_instance().setLevel('WARNING')
    set_checkpoint_reader(args.trust_pickle)
    models = [(args.config, args.checkpoint), *([args.compare] if args.compare else [])]
    try:
        views = [make_view(*model, args) for model in models]
        height, width = views[0].picture.shape[:2]
        y, x = args.query or (height // 2, width // 2)
        if not (0 <= y < height and 0 <= x < width):
            raise ValueError(
                f'--query must be within the resized image, {height} pixels high and {width} wide, '
                f'got {y} {x}'
            )
        query = ((y + 0.5) / height, (x + 0.5) / width)
        if args.png:
            with atomic_write(args.png) as temporary:
                figure(views, query, args.head).savefig(temporary, format='png', dpi=150)
        if args.out:
            with atomic_write(args.out) as temporary:
                temporary.write_text(page(views, query), 'utf-8')
    except (ValueError, OSError) as error:
        raise SystemExit(f'attention.py: error: {error}') from None
    for path in filter(None, (args.png, args.out)):
        print(f'{path}: {path.stat().st_size / 1e6:.1f} MB')


if __name__ == '__main__':
    main()
