"""Validate COCO annotations that mmdet would silently drop or fail on."""

import json
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

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
        content = json.loads(path.read_bytes())
    except ValueError as error:
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
        raise ValueError(f'the file must have lists of {", ".join(FIELDS)}, has {lists}')
    for key, fields in FIELDS.items():
        ids = set()
        for i, row in enumerate(content[key]):
            for field in fields:
                if field not in row:
                    raise ValueError(f'{key}[{i}] must have {", ".join(fields)}, got {row}')
            if row['id'] in ids:
                raise ValueError(f'{key}[{i}].id must be unique, got {row["id"]} again')
            ids.add(row['id'])


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
    try:
        x, y, w, h = box
        valid = isfinite(x) and isfinite(y) and 0 <= w < float('inf') and 0 <= h < float('inf')
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            f'{field} must be [x, y, width, height] in finite numbers, width and '
            f'height at least 0, got {box}'
        )
    if w >= 1 and h >= 1 and not (-w < x < width and -h < y < height):
        raise ValueError(
            f'{field}, [x, y, width, height], must overlap the image, {width} wide '
            f'and {height} high, got {box}'
        )


def _check_mask(field: str, mask: object, height: int, width: int) -> None:
    if isinstance(mask, list) and mask:
        try:
            valid = all(all(map(isfinite, polygon)) for polygon in mask)
        except TypeError:
            valid = False
        if not valid:
            raise ValueError(
                f'{field} must be polygons [[x1, y1, x2, …], …] in finite numbers, got {mask}'
            )
        return
    if not (isinstance(mask, dict) and {'size', 'counts'} <= set(mask)):
        raise ValueError(
            f"{field} must be a list of polygons or a dict of 'size' and 'counts', got {mask!r}"
        )
    if list(mask['size']) != [height, width]:
        raise ValueError(
            f"{field}.size must be the image's height and width, "
            f'{[height, width]}, got {mask["size"]}'
        )
    if isinstance(mask['counts'], list) and sum(mask['counts']) != height * width:
        raise ValueError(
            f"{field}.counts must sum to the image's {height * width} pixels, "
            f'got {sum(mask["counts"])}'
        )
