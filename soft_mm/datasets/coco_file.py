"""Validate COCO annotations that mmdet would silently drop or fail on."""

import json
import re
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from reprlib import repr as shorten

# Largest coordinate, in pixels. pycocotools needs memory for every pixel of a polygon's edges.
LARGEST = 100_000
# Numbers of at most 7 characters, of which only the last is below 'P'. pycocotools checks their sum when
# it decodes them, but reads beyond a text that ends within a number.
COMPRESSED = re.compile('([P-o]{0,6}[0-O])*')
ID = (int, float, str)
FIELDS = {
    'images': dict(id=ID, file_name=(str,), width=(int,), height=(int,)),
    'categories': dict(id=ID, name=(str,)),
    'annotations': dict(id=ID, image_id=ID, category_id=ID, bbox=(list,), area=(int, float)),
}


def check_coco_file(path: Path, classes: Sequence[str], with_masks: bool) -> None:
    """Check that every image and annotation of a COCO annotation file is valid.

    Boxes less than one pixel wide or high are accepted, because COCO has some; mmdet skips them.

    Args:
        path: annotation file.
        classes: class names of the dataset.
        with_masks: also check the segmentation masks.

    Raises:
        ValueError: for the first error; names the field, its value and what is allowed.
    """
    try:
        content = json.loads(path.read_text())  # decoded as pycocotools does
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is not valid JSON or is truncated: {error}') from None
    try:
        _check_fields(content)
        _check_classes(content['categories'], classes)
        _check_annotations(content, with_masks)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None


def _check_fields(content: object) -> None:
    lists = (
        [key for key, rows in content.items() if isinstance(rows, list)]
        if isinstance(content, dict)
        else []
    )
    if not set(FIELDS) <= set(lists):
        raise ValueError(f'the file must have lists of {", ".join(FIELDS)}, has {shorten(lists)}')
    for key, fields in FIELDS.items():
        ids = set()
        for i, row in enumerate(content[key]):
            if not isinstance(row, dict) or not row.keys() >= fields.keys():
                raise ValueError(f'{key}[{i}] must have {", ".join(fields)}, got {shorten(row)}')
            for field, types in fields.items():
                if not isinstance(row[field], types):
                    raise ValueError(
                        f'{key}[{i}].{field} must be {" or ".join(kind.__name__ for kind in types)}, '
                        f'got {shorten(row[field])}'
                    )
            if row['id'] in ids:
                raise ValueError(f'{key}[{i}].id must be unique, got {shorten(row["id"])} again')
            ids.add(row['id'])


def _are_numbers(values: list) -> bool:
    """Whether all values are numbers from -LARGEST to LARGEST, which NaN is not."""
    try:
        return all(map(isfinite, values)) and max(map(abs, values), default=0) <= LARGEST
    except (TypeError, OverflowError):  # no numbers, or integers above all floats
        return False


def _check_classes(categories: list[dict], classes: Sequence[str]) -> None:
    """Check names and order: mmdet numbers labels by the order of categories in the file."""
    if isinstance(classes, str):
        raise ValueError(f'metainfo.classes must be a tuple of names, got {classes!r}')
    names = [category['name'] for category in categories]
    for name in classes:
        if name not in names:
            raise ValueError(
                f"metainfo.classes must be among the file's categories, {names}, got {name!r}"
            )
    in_order = [name for name in names if name in classes]
    if in_order != list(classes):
        raise ValueError(
            "metainfo.classes must be in the order of the file's categories, "
            f'{in_order}, got {list(classes)}'
        )


def _check_annotations(content: dict, with_masks: bool) -> None:
    sizes = {image['id']: (image['height'], image['width']) for image in content['images']}
    for i, image in enumerate(content['images']):
        if min(sizes[image['id']]) <= 0:
            raise ValueError(
                f'images[{i}].height and width must be positive, got {image["height"]} and '
                f'{image["width"]}'
            )
    ids = {key: {row['id'] for row in content[key]} for key in ('images', 'categories')}
    for i, annotation in enumerate(content['annotations']):
        for field, key in ('image_id', 'images'), ('category_id', 'categories'):
            if annotation[field] not in ids[key]:
                raise ValueError(
                    f"annotations[{i}].{field} must be the id of one of the file's "
                    f'{len(ids[key])} {key}, got {shorten(annotation[field])}'
                )
        size = sizes[annotation['image_id']]
        _check_box(f'annotations[{i}].bbox', annotation['bbox'], *size)
        if with_masks:
            _check_mask(f'annotations[{i}].segmentation', annotation.get('segmentation'), *size)


def _check_box(field: str, box: list, height: int, width: int) -> None:
    if len(box) != 4 or not _are_numbers(box) or box[2] < 0 or box[3] < 0:
        raise ValueError(
            f'{field} must be [x, y, width, height] in numbers up to {LARGEST}, width and '
            f'height at least 0, got {shorten(box)}'
        )
    x, y, w, h = box
    if w >= 1 and h >= 1 and not (-w < x < width and -h < y < height):
        raise ValueError(
            f'{field}, [x, y, width, height], must overlap the image, {width} wide '
            f'and {height} high, got {box}'
        )


def _check_mask(field: str, mask: object, height: int, width: int) -> None:
    if isinstance(mask, list) and mask:
        if not all(isinstance(polygon, list) and _are_numbers(polygon) for polygon in mask):
            raise ValueError(
                f'{field} must be polygons [[x1, y1, x2, …], …] in numbers up to {LARGEST}, '
                f'got {shorten(mask)}'
            )
        return
    if not (isinstance(mask, dict) and {'size', 'counts'} <= set(mask)):
        raise ValueError(
            f"{field} must be a list of polygons or a dict of 'size' and 'counts', got {shorten(mask)}"
        )
    if mask['size'] != [height, width]:
        raise ValueError(
            f"{field}.size must be the image's height and width, "
            f'{[height, width]}, got {shorten(mask["size"])}'
        )
    counts = mask['counts']
    if isinstance(counts, str) and COMPRESSED.fullmatch(counts):
        return
    if not (isinstance(counts, list) and all(isinstance(n, int) and n >= 0 for n in counts)):
        raise ValueError(
            f'{field}.counts must be a list of numbers of pixels, or a text that encodes them, got '
            f'{shorten(counts)}'
        )
    if sum(counts) != height * width:
        raise ValueError(
            f"{field}.counts must sum to the image's {height * width} pixels, got {sum(counts)}"
        )
