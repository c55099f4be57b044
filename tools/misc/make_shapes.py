"""Generate a small detection dataset of textured shapes in COCO format, with instance masks.

Each class has its own shape and texture; size, position, rotation and colours are random. With --hard,
shapes are smaller and more, strips with the same textures clutter the background, and stars belong to one
of two classes: `twin` if the image has another star, wherever it is, otherwise `star`. The same arguments
always give the same files.
"""

import argparse
import json
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from soft_mm.utils import add_quiet, progress

SPLITS = ('train', 'val')
CLASSES = {'circle': 'stripes', 'square': 'checks', 'triangle': 'dots', 'star': 'blots'}
# Number of corners, and the radius of every second corner relative to the others.
CORNERS = {'square': (4, 1.0), 'triangle': (3, 1.0), 'star': (10, 0.45)}
ROTATION = -math.pi / 8, math.pi / 8  # range of angles; at 0 the first corner points right
TWIN = 'twin'  # with --hard: a star that is not the only one of its image
MAX_TRIES = 10  # random placements per shape; if none of them fits, the shape is skipped
MIN_VISIBLE = 0.5  # fraction of every shape that later shapes leave visible
CONTRAST = 100, 300  # range of the RGB distance between the colours of a texture, 0 to 255 each


@dataclass(frozen=True)
class Difficulty:
    """How an image is composed.

    Attributes:
        max_shapes (int): largest number of shapes.
        radii (tuple[int, int]): sides of the image per smallest and per largest radius.
        strips (int): number of textured strips in the background.
        twins (bool): whether stars that are not alone are of a class of their own.
    """

    max_shapes: int = 4
    radii: tuple[int, int] = (8, 4)
    strips: int = 0
    twins: bool = False


EASY, HARD = Difficulty(), Difficulty(max_shapes=10, radii=(20, 9), strips=8, twins=True)


def smooth_noise(rng, size, cells, channels):
    """Uniform noise on a cells x cells grid, upsampled: (size, size[, channels]) around [0, 1]."""
    grid = rng.random((cells, cells, channels), dtype=np.float32)
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)


def draw_background(rng, size):
    """Smooth colour noise plus fine-grained noise: (size, size, 3) uint8."""
    colour = rng.uniform(50, 205, 3)
    smooth = 100 * (smooth_noise(rng, size, 5, 3) - 0.5)
    fine = rng.normal(0, 8, (size, size, 3))
    return np.clip(colour + smooth + fine, 0, 255).astype(np.uint8)


def draw_texture(rng, name, size):
    """The named texture in two random colours of sufficient contrast: (size, size, 3) uint8."""
    first, second = rng.integers(0, 256, (2, 3))
    while not CONTRAST[0] <= np.linalg.norm(first - second) <= CONTRAST[1]:
        first, second = rng.integers(0, 256, (2, 3))
    # Coordinates in a rotated and shifted frame, in units of one stripe, check or dot.
    unit = max(3.0, size * rng.uniform(0.025, 0.05))
    angle, (shift_u, shift_v) = rng.uniform(0, math.pi), rng.random(2)
    y, x = np.mgrid[:size, :size] / unit
    u = x * math.cos(angle) + y * math.sin(angle) + shift_u
    v = y * math.cos(angle) - x * math.sin(angle) + shift_v
    if name == 'stripes':
        pattern = np.floor(u) % 2 == 0
    elif name == 'checks':
        pattern = (np.floor(u) + np.floor(v)) % 2 == 0
    elif name == 'dots':
        # Dots are spaced wider than stripes, because in small images they would merge.
        pattern = np.hypot(u / 1.5 % 1 - 0.5, v / 1.5 % 1 - 0.5) < 0.35
    else:
        pattern = smooth_noise(rng, size, round(size / unit), 1) < 0.5
    return np.where(pattern[..., None], first, second).astype(np.uint8)


def draw_strips(rng, image, number):
    """Draw thin strips, each with the texture of a random class, over the image."""
    size = len(image)
    for _ in range(number):
        texture = draw_texture(rng, list(CLASSES.values())[rng.integers(len(CLASSES))], size)
        mask = np.zeros((size, size), np.uint8)
        start, end = rng.integers(0, size, (2, 2)).tolist()
        cv2.line(mask, start, end, 1, int(rng.integers(2, max(3, size // 32) + 1)), cv2.LINE_8)
        image[mask.astype(bool)] = texture[mask.astype(bool)]


def draw_mask(rng, name, size, radii):
    """A shape of random radius, position and rotation within the image: (size, size) bool."""
    smallest, largest = radii
    radius = int(rng.integers(math.ceil(size / smallest), size // largest + 1))
    centre = rng.integers(radius, size - radius, 2)
    mask = np.zeros((size, size), np.uint8)
    if name == 'circle':
        cv2.circle(mask, centre.tolist(), radius, 1, cv2.FILLED, cv2.LINE_8)
    else:
        count, inner = CORNERS[name]
        angles = rng.uniform(*ROTATION) + 2 * math.pi * np.arange(count) / count
        radii = radius * np.where(np.arange(count) % 2, inner, 1.0)
        points = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], 1, cv2.LINE_8)
    return mask.astype(bool)


def draw_sample(rng, size, difficulty):
    """Draw one image with its shapes.

    Returns:
        image: (size, size, 3) uint8.
        shapes: list of (index into the classes, visible mask as (size, size) bool), from back to front.
    """
    image = draw_background(rng, size)
    draw_strips(rng, image, difficulty.strips)
    shapes = []  # (class index, visible mask, full area in pixels)
    for _ in range(rng.integers(1, difficulty.max_shapes + 1)):
        label = int(rng.integers(len(CLASSES)))
        shape, texture_name = list(CLASSES.items())[label]
        texture = draw_texture(rng, texture_name, size)
        for _ in range(MAX_TRIES):
            mask = draw_mask(rng, shape, size, difficulty.radii)
            if all((old & ~mask).sum() >= MIN_VISIBLE * area for _, old, area in shapes):
                shapes = [(other, old & ~mask, area) for other, old, area in shapes]
                shapes.append((label, mask, mask.sum()))
                image[mask] = texture[mask]
                break
    star = list(CLASSES).index('star')
    has_twins = difficulty.twins and sum(label == star for label, *_ in shapes) > 1
    return image, [
        (len(CLASSES) if has_twins and label == star else label, visible)
        for label, visible, _ in shapes
    ]


def write_split(root, split, count, size, seed, difficulty, bar):
    """Write `count` images of `size` x `size` pixels and their annotations below `root`.

    Returns the number of annotated shapes.
    """
    images, annotations = [], []
    (root / split).mkdir()
    for index in bar.track(range(count), description=f'draw {split}'):
        # One seed per image, so that an image does not depend on the size of the dataset.
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        image, shapes = draw_sample(rng, size, difficulty)
        file_name = f'{index:06d}.png'
        if not cv2.imwrite(str(root / split / file_name), image):
            raise OSError(f'could not write {root / split / file_name}')
        images.append(dict(id=index, file_name=file_name, width=size, height=size))
        for label, visible in shapes:
            rle = mask_utils.encode(np.asfortranarray(visible, np.uint8))
            annotations.append(
                dict(
                    id=len(annotations) + 1,  # starts at 1: to COCOeval, 0 means "no match"
                    image_id=index,
                    category_id=label + 1,
                    iscrowd=0,
                    bbox=mask_utils.toBbox(rle).tolist(),
                    area=int(visible.sum()),
                    segmentation=dict(size=[size, size], counts=rle['counts'].decode()),
                )
            )
    names = [*CLASSES, TWIN] if difficulty.twins else CLASSES
    categories = [dict(id=i, name=name) for i, name in enumerate(names, 1)]
    (root / 'annotations' / f'instances_{split}.json').write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=categories))
    )
    return len(annotations)


def check_existing(out_dir, wanted):
    """Exit with an error unless `out_dir` was generated with the arguments `wanted`."""
    try:
        made = {'hard': False, **dict(json.loads((out_dir / 'meta.json').read_text()))}
    except (OSError, TypeError, ValueError):
        sys.exit(
            f'error: {out_dir} exists but has no meta.json written by this command; '
            'remove it or choose another folder'
        )
    differing = [
        f'--{key} {made.get(key)} (now {value})'
        for key, value in wanted.items()
        if made.get(key) != value
    ]
    if differing:
        sys.exit(
            f'error: {out_dir} was generated with {", ".join(differing)}; '
            'remove it or choose another folder'
        )


def integer_from(low):
    """Return an argparse type for integers of at least `low`."""

    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < low:
            raise argparse.ArgumentTypeError(f'must be an integer >= {low}, got {text!r}')
        return value

    return parse


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('out_dir', metavar='OUT_DIR', type=Path, help='folder to create')
    for name, low, default, text in (
        ('train', 1, 600, 'number of training images'),
        ('val', 0, 100, 'number of validation images'),
        ('size', 64, 128, 'height and width of the images in pixels'),
        ('seed', 0, 0, 'random seed'),
    ):
        parser.add_argument(
            f'--{name}',
            type=integer_from(low),
            default=default,
            help=f'{text} (>= {low}, default: {default})',
        )
    parser.add_argument(
        '--hard', action='store_true', help='small shapes in clutter, and a class of twins'
    )
    add_quiet(parser)
    wanted = vars(parser.parse_args())
    quiet = wanted.pop('quiet')
    out_dir = wanted.pop('out_dir').resolve()

    if out_dir.exists():
        check_existing(out_dir, wanted)
        if not quiet:
            print(f'Reused {out_dir}, which was generated with the same arguments')
        return
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    # Generated in a temporary folder and renamed at the end: OUT_DIR is either complete or absent.
    with (
        progress(quiet) as bar,
        tempfile.TemporaryDirectory(prefix=f'.{out_dir.name}.', dir=out_dir.parent) as scratch,
    ):
        root = Path(scratch) / out_dir.name
        (root / 'annotations').mkdir(parents=True)
        difficulty = HARD if wanted['hard'] else EASY
        total = sum(
            write_split(root, split, wanted[split], wanted['size'], wanted['seed'], difficulty, bar)
            for split in SPLITS
        )
        made = {key: value for key, value in wanted.items() if value is not False}
        (root / 'meta.json').write_text(json.dumps(made))
        root.rename(out_dir)
    if not quiet:
        print(
            f'Wrote {wanted["train"]} train and {wanted["val"]} val images with {total} shapes '
            f'to {out_dir}'
        )


if __name__ == '__main__':
    main()
