"""Validate COCO annotations that mmdet would silently drop or fail on."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from reprlib import repr  # of bounded length and depth

# Largest coordinate, in pixels. pycocotools needs memory for every pixel of a polygon's edges.
LARGEST = 100_000
FIELDS = {
    'images': ('id', 'file_name', 'width', 'height'),
    'categories': ('id', 'name'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
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
        raise ValueError(f'the file must have lists of {", ".join(FIELDS)}, has {repr(lists)}')
    for key, fields in FIELDS.items():
        ids = set()
        for i, row in enumerate(content[key]):
            if not isinstance(row, dict) or not row.keys() >= set(fields):
                raise ValueError(f'{key}[{i}] must have {", ".join(fields)}, got {repr(row)}')
            for field in fields:
                _check_type(f'{key}[{i}].{field}', field, row[field])
            if row['id'] in ids:
                raise ValueError(f'{key}[{i}].id must be unique, got {repr(row["id"])} again')
            ids.add(row['id'])


def _check_type(name: str, field: str, value: object) -> None:
    if field.endswith('id') and not isinstance(value, int | str):
        raise ValueError(f'{name} must be an integer or a text, got {repr(value)}')
    if field == 'file_name' and not isinstance(value, str):
        raise ValueError(f'{name} must be a text, got {repr(value)}')
    if field == 'area' and not _are_numbers([value], LARGEST**2):
        raise ValueError(f'{name} must be a number of at most {LARGEST**2}, got {repr(value)}')


def _are_numbers(values: Iterable, largest: int) -> bool:
    """Whether all values are numbers from -largest to largest, which NaN is not."""
    return all(isinstance(value, int | float) and abs(value) <= largest for value in values)


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
        if not all(isinstance(side, int) and side > 0 for side in sizes[image['id']]):
            raise ValueError(
                f'images[{i}].height and width must be positive integers, got '
                f'{image["height"]!r} and {image["width"]!r}'
            )
    ids = {key: {row['id'] for row in content[key]} for key in ('images', 'categories')}
    for i, annotation in enumerate(content['annotations']):
        for field, key in ('image_id', 'images'), ('category_id', 'categories'):
            if annotation[field] not in ids[key]:
                raise ValueError(
                    f"annotations[{i}].{field} must be the id of one of the file's "
                    f'{len(ids[key])} {key}, got {annotation[field]!r}'
                )
        size = sizes[annotation['image_id']]
        _check_box(f'annotations[{i}].bbox', annotation['bbox'], *size)
        if with_masks:
            _check_mask(f'annotations[{i}].segmentation', annotation.get('segmentation'), *size)


def _check_box(field: str, box: object, height: int, width: int) -> None:
    valid = isinstance(box, list) and len(box) == 4 and _are_numbers(box, LARGEST)
    if not valid or box[2] < 0 or box[3] < 0:
        raise ValueError(
            f'{field} must be [x, y, width, height] in numbers up to {LARGEST}, width and '
            f'height at least 0, got {repr(box)}'
        )
    x, y, w, h = box
    if w >= 1 and h >= 1 and not (-w < x < width and -h < y < height):
        raise ValueError(
            f'{field}, [x, y, width, height], must overlap the image, {width} wide '
            f'and {height} high, got {box}'
        )


def _check_mask(field: str, mask: object, height: int, width: int) -> None:
    if isinstance(mask, list) and mask:
        if not all(
            isinstance(polygon, list) and _are_numbers(polygon, LARGEST) for polygon in mask
        ):
            raise ValueError(
                f'{field} must be polygons [[x1, y1, x2, …], …] in numbers up to {LARGEST}, '
                f'got {repr(mask)}'
            )
        return
    if not (isinstance(mask, dict) and {'size', 'counts'} <= set(mask)):
        raise ValueError(
            f"{field} must be a list of polygons or a dict of 'size' and 'counts', got {repr(mask)}"
        )
    if mask['size'] != [height, width]:
        raise ValueError(
            f"{field}.size must be the image's height and width, "
            f'{[height, width]}, got {repr(mask["size"])}'
        )
    counts = mask['counts']
    if isinstance(counts, str):
        counts = _decode_counts(counts)
    if not (isinstance(counts, list) and all(isinstance(n, int) and n >= 0 for n in counts)):
        raise ValueError(
            f'{field}.counts must be numbers of pixels or a text that encodes them, got '
            f'{repr(mask["counts"])}'
        )
    if sum(counts) != height * width:
        raise ValueError(
            f"{field}.counts must sum to the image's {height * width} pixels, got {sum(counts)}"
        )


def _decode_counts(text: str) -> list[int] | None:
    """Decode COCO's compressed run lengths, or return None if the text is none.

    A number consists of characters from '0' on, with five bits each, the lowest first, and a sixth that
    says whether another character follows. The last one has the sign. From the fourth number on, they
    are differences to the one before the previous.
    """
    counts, number, shift = [], 0, 0
    for char in text:
        bits = ord(char) - ord('0')
        if not 0 <= bits < 64 or shift > 30:
            return None
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                number -= 1 << shift
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number, shift = 0, 0
    return None if shift else counts
