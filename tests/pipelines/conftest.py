"""The photographs, and the option ``--table PAGE``, which writes the results into a page's table."""

import json
import re
import shutil
from pathlib import Path

import cv2
import pytest
import sklearn

HEAD = '| family | config | our backbones | result | reason |\n|---|---|---|---|---|\n'
TABLE = re.compile(r'(<!-- table: pipelines -->\n).*?(\n<!-- end of table -->)', re.DOTALL)
ROW = re.compile(r'^\| .*? \| `(.*?)` \|.*\n', re.MULTILINE)
SAMPLES = Path(__file__).parents[3] / 'shared/data'


@pytest.fixture(scope='session')
def photographs(tmp_path_factory) -> Path:
    """The sample images of COCO and ADE20K beside the checkout, or two of scikit-learn in their place.

    The latter's objects are their largest bright areas.
    """
    if SAMPLES.is_dir():
        return SAMPLES
    data = tmp_path_factory.mktemp('photographs')
    coco, ade20k = data / 'coco', data / 'ade20k'
    for folder in coco / 'val2017', coco / 'annotations':
        folder.mkdir(parents=True)
    for folder in 'images', 'annotations':
        (ade20k / folder / 'validation').mkdir(parents=True)
    images, objects = [], []
    for i, name in enumerate(('china', 'flower')):
        source = Path(sklearn.__file__).parent / f'datasets/images/{name}.jpg'
        grey = cv2.imread(str(source), cv2.IMREAD_GRAYSCALE)
        _, bright = cv2.threshold(grey, 0, 1, cv2.THRESH_OTSU)
        height, width = grey.shape
        images.append(dict(id=i, file_name=source.name, height=height, width=width))
        outlines, _ = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        objects += [
            dict(
                image_id=i,
                category_id=1,
                iscrowd=0,
                bbox=list(cv2.boundingRect(outline)),
                area=cv2.contourArea(outline),
                segmentation=[outline.flatten().tolist()],
            )
            for outline in sorted(outlines, key=cv2.contourArea)[-5:]
        ]
        shutil.copy(source, coco / 'val2017')
        shutil.copy(source, ade20k / 'images/validation')
        assert cv2.imwrite(str(ade20k / f'annotations/validation/{name}.png'), bright + 1)
    annotations = dict(
        images=images,
        annotations=[dict(item, id=i) for i, item in enumerate(objects, start=1)],
        categories=[dict(id=1, name='person')],
    )
    (coco / 'annotations/instances_val2017.json').write_text(json.dumps(annotations))
    return data


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--table', type=Path, metavar='PAGE', help='page to write the results into')


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Replace the rows of the families that ran, sorted by their configs."""
    page = config.getoption('table', None)
    if page is None:
        return
    text = page.read_text()
    rows = {match[1]: match[0] for match in ROW.finditer(TABLE.search(text)[0])}
    for outcome in 'passed', 'skipped', 'failed':
        for report in terminalreporter.getreports(outcome):
            for _, cells in report.user_properties:
                line = f'| {" | ".join(cells)} |\n'
                rows[ROW.match(line)[1]] = line
    table = HEAD + ''.join(rows[config] for config in sorted(rows))
    page.write_text(TABLE.sub(lambda match: f'{match[1]}\n{table}{match[2]}', text))
