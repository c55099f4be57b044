"""Generate a small detection set of textured shapes in COCO format, with instance masks.

Each class has its shape and its texture; size, place, rotation and colours are random.
The set is a function of the arguments alone: two runs give the same files.
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from soft_mm.utils import add_quiet, progress

SPLITS = ('train', 'val')
CLASSES = {'circle': 'stripes', 'square': 'checks', 'triangle': 'dots', 'star': 'blots'}
# Number of corners, and distance of every second one from the centre relative to the first.
CORNERS = {'square': (4, 1.0), 'triangle': (3, 1.0), 'star': (10, 0.45)}
ROTATION = -math.pi / 8, math.pi / 8  # from the first corner pointing right
MAX_SHAPES = 4
MAX_TRIES = 10  # placements tried before a shape is given up
MIN_VISIBLE = 0.5  # part of its own area that every shape keeps
CONTRAST = 100, 300  # distance in RGB (0 to 255 each) between the two colours of a texture


def smooth_noise(rng, size, cells, channels):
    """Uniform noise on a cells x cells grid, enlarged: (size, size[, channels]) around [0, 1]."""
    grid = rng.random((cells, cells, channels), dtype=np.float32)
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)


def draw_background(rng, size):
    """Smooth colour noise plus fine noise: (size, size, 3) uint8."""
    colour = rng.uniform(50, 205, 3)
    smooth = 100 * (smooth_noise(rng, size, 5, 3) - 0.5)
    fine = rng.normal(0, 8, (size, size, 3))
    return np.clip(colour + smooth + fine, 0, 255).astype(np.uint8)


def draw_texture(rng, name, size):
    """The texture of that name in two colours of visible contrast: (size, size, 3) uint8."""
    first, second = rng.integers(0, 256, (2, 3))
    while not CONTRAST[0] <= np.linalg.norm(first - second) <= CONTRAST[1]:
        first, second = rng.integers(0, 256, (2, 3))
    # Coordinates in a rotated, shifted frame, in units of one stripe, field or dot.
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
        # Dots are spaced wider than stripes, else they melt together in small images.
        pattern = np.hypot(u / 1.5 % 1 - 0.5, v / 1.5 % 1 - 0.5) < 0.35
    else:
        pattern = smooth_noise(rng, size, round(size / unit), 1) < 0.5
    return np.where(pattern[..., None], first, second).astype(np.uint8)


def draw_mask(rng, name, size):
    """A shape of random radius, place and rotation, fully inside: (size, size) bool."""
    radius = int(rng.integers(math.ceil(size / 8), size // 4 + 1))
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


def draw_sample(rng, size):
    """One image with its shapes.

    Returns:
        image: (size, size, 3) uint8.
        shapes: list of (index into CLASSES, visible mask as (size, size) bool), lowest first.
    """
    image = draw_background(rng, size)
    shapes = []  # (class index, visible mask, whole area in pixels)
    for _ in range(rng.integers(1, MAX_SHAPES + 1)):
        label = int(rng.integers(len(CLASSES)))
        shape, texture_name = list(CLASSES.items())[label]
        texture = draw_texture(rng, texture_name, size)
        for _ in range(MAX_TRIES):
            mask = draw_mask(rng, shape, size)
            if all((old & ~mask).sum() >= MIN_VISIBLE * area for _, old, area in shapes):
                shapes = [(other, old & ~mask, area) for other, old, area in shapes]
                shapes.append((label, mask, mask.sum()))
                image[mask] = texture[mask]
                break
    return image, [(label, visible) for label, visible, _ in shapes]


def write_split(root, split, count, size, seed, bar):
    """Write `count` images of `size` x `size` pixels and their annotations below `root`.

    Returns the number of annotated shapes.
    """
    images, annotations = [], []
    (root / split).mkdir()
    for index in bar.track(range(count), description=f'draw {split}'):
        # Own seed per image: an image does not depend on how many others are made.
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        image, shapes = draw_sample(rng, size)
        file_name = f'{index:06d}.png'
        if not cv2.imwrite(str(root / split / file_name), image):
            raise OSError(f'could not write {root / split / file_name}')
        images.append(dict(id=index, file_name=file_name, width=size, height=size))
        for label, visible in shapes:
            rle = mask_utils.encode(np.asfortranarray(visible, np.uint8))
            annotations.append(
                dict(
                    id=len(annotations) + 1,  # from 1: COCOeval reads 0 as "no match"
                    image_id=index,
                    category_id=label + 1,
                    iscrowd=0,
                    bbox=mask_utils.toBbox(rle).tolist(),
                    area=int(visible.sum()),
                    segmentation=dict(size=[size, size], counts=rle['counts'].decode()),
                )
            )
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)]
    (root / 'annotations' / f'instances_{split}.json').write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=categories))
    )
    return len(annotations)


def check_existing(out_dir, wanted):
    """Exit with an error unless the folder `out_dir` was made with the arguments `wanted`."""
    try:
        made = dict(json.loads((out_dir / 'meta.json').read_text()))
    except (OSError, TypeError, ValueError):
        sys.exit(
            f'error: {out_dir} exists and has no meta.json of this command; '
            'remove it or choose another folder'
        )
    differing = [
        f'--{key} {made.get(key)} (now {value})'
        for key, value in wanted.items()
        if made.get(key) != value
    ]
    if differing:
        sys.exit(
            f'error: {out_dir} was made with {", ".join(differing)}; '
            'remove it or choose another folder'
        )


def integer_from(low):
    """Argument type: an integer of at least `low`."""

    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < low:
            raise argparse.ArgumentTypeError(f'got {text!r}, allowed is an integer >= {low}')
        return value

    return parse


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('out_dir', metavar='OUT_DIR', type=Path, help='folder to make')
    for name, low, default, text in (
        ('train', 1, 600, 'number of training images'),
        ('val', 0, 100, 'number of validation images'),
        ('size', 64, 128, 'side of the square images in pixels'),
        ('seed', 0, 0, 'seed of the random numbers'),
    ):
        parser.add_argument(
            f'--{name}',
            type=integer_from(low),
            default=default,
            help=f'{text} (>= {low}, default: {default})',
        )
    add_quiet(parser)
    wanted = vars(parser.parse_args())
    quiet = wanted.pop('quiet')
    out_dir = wanted.pop('out_dir').resolve()

    if out_dir.exists():
        check_existing(out_dir, wanted)
        if not quiet:
            print(f'Reused {out_dir}, made before with the same arguments')
        return
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    # Made beside its final place and renamed at the end: OUT_DIR is either whole or absent.
    with (
        progress(quiet) as bar,
        tempfile.TemporaryDirectory(prefix=f'.{out_dir.name}.', dir=out_dir.parent) as scratch,
    ):
        root = Path(scratch) / out_dir.name
        (root / 'annotations').mkdir(parents=True)
        total = sum(
            write_split(root, split, wanted[split], wanted['size'], wanted['seed'], bar)
            for split in SPLITS
        )
        (root / 'meta.json').write_text(json.dumps(wanted))
        root.rename(out_dir)
    if not quiet:
        print(
            f'Wrote {wanted["train"]} train and {wanted["val"]} val images with {total} shapes '
            f'to {out_dir}'
        )


if __name__ == '__main__':
    main()
