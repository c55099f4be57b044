"""Draw what a model predicts on images, videos or a webcam, and write it as JSON."""

import argparse
import os
import warnings
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.fileio import dump
from mmengine.logging import MMLogger
from rich.progress import Progress

from soft_mm.engine.predictor import Predictor
from soft_mm.fileio import set_checkpoint_reader
from soft_mm.fileio.atomic import ATOMIC
from soft_mm.fileio.media import IMAGES, Video, find_media, video_writer, write_image
from soft_mm.utils import add_cfg_options, add_quiet, add_trust_pickle, progress

OUTPUTS = """
FOLDER gets the drawing in vis/NAME and the prediction in preds/NAME.json, as from mmdet's
DetInferencer. NAME is the path of the input below the folder that all inputs share. The JSON has, for
an image or for each frame of a video, labels and names of the classes, and

  classification         scores of the five best classes
  detection              scores, bboxes (x1, y1, x2, y2) and, if the model has them, masks
  semantic segmentation  areas in pixels, and masks

It holds predictions of all scores: --score-thr is only for the drawing. Masks are run-length encoded,
for pycocotools.mask.decode.
"""


def folder(name: str) -> Path:
    path = Path(name)
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise argparse.ArgumentTypeError(f'must be a folder, got {name!r}: {existing} is a file')
    return path


def device(name: str) -> str:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # which one depends on PyTorch's build
        message = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f'{name!r} cannot be used: {message}') from None
    return name


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be an integer >= 1, got {text!r}')
    return int(text)


def fraction(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f'must be a number from 0 to 1, got {text!r}')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=OUTPUTS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        'inputs',
        nargs='+',
        metavar='INPUT',
        help='image, video, folder or glob pattern of them; or only the index of a webcam, which is '
        'recorded until Ctrl-C',
    )
    parser.add_argument(
        '--out', type=folder, required=True, metavar='FOLDER', help='folder to write to'
    )
    parser.add_argument(
        '--score-thr',
        type=fraction,
        metavar='SCORE',
        help='least score to draw (default: 0.3 for detection, 0 for classification)',
    )
    parser.add_argument(
        '--batch-size',
        type=positive,
        default=1,
        metavar='N',
        help='number of images in a batch (default: 1); detectors and segmenters get images of one '
        'size that follow each other',
    )
    parser.add_argument(
        '--device',
        type=device,
        default=get_device(),
        help='device of the model, such as cpu or cuda:1 (default: %(default)s)',
    )
    add_trust_pickle(parser)
    add_cfg_options(parser)
    add_quiet(parser)
    return parser.parse_args()


def predict_images(
    predictor: Predictor, images: dict[str, str], args: argparse.Namespace, bar: Progress
) -> list[str]:
    """Draw and write all images by name; return those that cannot be read."""
    unreadable = []

    def read() -> Iterator[tuple[str, np.ndarray]]:
        for name, file in bar.track(images.items(), description='images'):
            image = cv2.imread(file)
            if image is None:
                unreadable.append(file)
            else:
                yield name, image

    for name, picture, prediction in predictor(read(), args.batch_size):
        write_image(args.out / 'vis' / f'{name}{Path(images[name]).suffix}', picture)
        content = dict(image=images[name], **prediction)
        dump(content, args.out / 'preds' / f'{name}.json', backend_args=ATOMIC)
    return unreadable


def predict_video(
    predictor: Predictor, name: str, source: str | int, args: argparse.Namespace, bar: Progress
) -> bool:
    """Draw and write a video file or a webcam; return whether it can be read."""
    video = Video(source)
    frames = bar.track(video, total=video.length, description=name)
    predictions = []
    with (
        video_writer(args.out / 'vis' / f'{name}.mp4', video.fps) as write,
        suppress(KeyboardInterrupt) if isinstance(source, int) else nullcontext(),
    ):
        for _, picture, prediction in predictor(((name, f) for f in frames), args.batch_size):
            write(picture)
            predictions.append(prediction)
    if predictions:
        content = dict(video=source, fps=video.fps, frames=predictions)
        dump(content, args.out / 'preds' / f'{name}.json', backend_args=ATOMIC)
    return bool(predictions)


def run(args: argparse.Namespace) -> None:
    """Draw and write all inputs.

    Raises:
        ValueError: for wrong arguments; for inputs that cannot be read, after all others.
        OSError: if a file is missing or cannot be written.
    """
    index = args.inputs[0] if len(args.inputs) == 1 else ''
    if index.isdecimal() and not os.path.exists(index):
        inputs = {f'webcam{index}': int(index)}
    else:
        inputs = find_media(args.inputs)
    images = {name: file for name, file in inputs.items() if str(file).lower().endswith(IMAGES)}
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    set_checkpoint_reader(args.trust_pickle)
    predictor = Predictor(cfg, args.checkpoint, args.device, args.score_thr)
    with progress(args.quiet) as bar:
        unreadable = predict_images(predictor, images, args, bar) if images else []
        for name, source in inputs.items():
            if name not in images and not predict_video(predictor, name, source, args, bar):
                unreadable.append(str(source))
    if len(unreadable) < len(inputs):
        print(f'predictions: {args.out / "preds"}')
        print(f'pictures: {args.out / "vis"}')
    if unreadable:
        lines = f'{len(unreadable)} of {len(inputs)} inputs cannot be read:', *unreadable
        raise ValueError('\n  '.join(lines))


def main() -> None:
    args = parse_args()
    # The toolboxes report their workarounds, and every box that reaches over the border.
    MMLogger.get_current_instance().setLevel('ERROR')
    warnings.filterwarnings('ignore', module='mmengine.visualization')
    try:
        run(args)
    except (ValueError, OSError) as error:
        raise SystemExit(f'predict.py: error: {error}') from None


if __name__ == '__main__':
    main()
