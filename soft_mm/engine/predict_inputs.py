"""Prediction for images, videos and webcams, written to a folder, and the arguments of tools for it."""

import argparse
import os
import warnings
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import cv2
import numpy as np
from mmengine.fileio import dump
from mmengine.logging import MMLogger
from rich.progress import Progress

from ..fileio.atomic import ATOMIC
from ..fileio.media import IMAGES, Video, find_media, video_writer, write_image
from ..utils import progress
from .predictor import Predictor

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


def fraction(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f'must be a number from 0 to 1, got {text!r}')


def add_inputs_and_outputs(parser: argparse.ArgumentParser) -> None:
    """Add ``inputs``, ``--out`` and ``--score-thr``, and describe the outputs below the options."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, OUTPUTS
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


def predict_images(
    predictor: Predictor, images: dict[str, str], out: Path, batch_size: int, bar: Progress
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

    for name, picture, prediction in predictor(read(), batch_size):
        write_image(out / 'vis' / f'{name}{Path(images[name]).suffix}', picture)
        content = dict(image=images[name], **prediction)
        dump(content, out / 'preds' / f'{name}.json', backend_args=ATOMIC)
    return unreadable


def predict_video(
    predictor: Predictor,
    name: str,
    source: str | int,
    out: Path,
    batch_size: int,
    bar: Progress,
) -> bool:
    """Draw and write a video file or a webcam; return whether it can be read."""
    video = Video(source)
    frames = bar.track(video, total=video.length, description=name)
    predictions = []
    with (
        video_writer(out / 'vis' / f'{name}.mp4', video.fps) as write,
        suppress(KeyboardInterrupt) if isinstance(source, int) else nullcontext(),
    ):
        for _, picture, prediction in predictor(((name, f) for f in frames), batch_size):
            write(picture)
            predictions.append(prediction)
    if predictions:
        content = dict(video=source, fps=video.fps, frames=predictions)
        dump(content, out / 'preds' / f'{name}.json', backend_args=ATOMIC)
    return bool(predictions)


def predict_inputs(
    predictor: Predictor, patterns: list[str], out: Path, batch_size: int = 1, quiet: bool = False
) -> None:
    """Draw and write all inputs, with progress bars.

    Args:
        predictor: the model.
        patterns: for :func:`soft_mm.fileio.media.find_media`, or only the index of a webcam.
        out: folder to write to.
        batch_size: largest number of images in a batch.
        quiet: whether to show no progress.

    Raises:
        ValueError: for wrong arguments; for inputs that cannot be read, after all others.
        OSError: if a file is missing or cannot be written.
    """
    index = patterns[0] if len(patterns) == 1 else ''
    if index.isdecimal() and not os.path.exists(index):
        inputs = {f'webcam{index}': int(index)}
    else:
        inputs = find_media(patterns)
    images = {name: file for name, file in inputs.items() if str(file).lower().endswith(IMAGES)}
    with progress(quiet) as bar:
        unreadable = predict_images(predictor, images, out, batch_size, bar) if images else []
        for name, source in inputs.items():
            if name in images:
                continue
            if not predict_video(predictor, name, source, out, batch_size, bar):
                unreadable.append(str(source))
    if len(unreadable) < len(inputs):
        print(f'predictions: {out / "preds"}')
        print(f'pictures: {out / "vis"}')
    if unreadable:
        lines = f'{len(unreadable)} of {len(inputs)} inputs cannot be read:', *unreadable
        raise ValueError('\n  '.join(lines))


def silence_toolboxes() -> None:
    """Hide the toolboxes' reports of their workarounds, and of every box that crosses the border."""
    MMLogger.get_current_instance().setLevel('ERROR')
    warnings.filterwarnings('ignore', module='mmengine.visualization')
