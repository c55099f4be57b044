"""OpenMMLab's metafiles: ``files`` gives what they should say, tables.py writes and checks them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

HEAD = "# Written by tools/analysis_tools/tables.py; the accuracies are the papers'.\n"
DATASETS = {'imagenet': 'ImageNet-1k', 'coco': 'COCO', 'ade20k': 'ADE20K'}
# Of each accuracy in papers.yml: the task and the metric, as OpenMMLab names them.
METRICS = {
    'top1': ('Image Classification', 'Top 1 Accuracy'),
    'box_ap': ('Object Detection', 'box AP'),
    'mask_ap': ('Instance Segmentation', 'mask AP'),
    'miou': ('Semantic Segmentation', 'mIoU'),
}


def files(papers: dict, measure: Callable[[str, dict], dict]) -> Iterator[tuple[Path, str]]:
    """Paths from the root, with their texts.

    Args:
        papers: configs/papers.yml.
        measure: from a folder and a row of it to its 'params' in millions and, of a classifier, its
            'flops' in billions.
    """
    paths = [Path('configs') / folder / 'metafile.yml' for folder in DATASETS]
    for folder, path in zip(DATASETS, paths):
        used = {row['paper'] for row in papers[folder]}
        collections = [
            {
                'Name': name,
                'Metadata': {'Training Data': DATASETS[folder]},
                'Paper': {'Title': paper['title'], 'URL': paper['url']},
                'README': f'configs/{folder}/README.md',
            }
            for name, paper in papers['papers'].items()
            if name in used
        ]
        models = [_model(folder, row, measure(folder, row)) for row in papers[folder]]
        yield path, _dump({'Collections': collections, 'Models': models})
    yield Path('model-index.yml'), _dump({'Import': [str(path) for path in paths]})


def _model(folder: str, row: dict, measured: dict) -> dict:
    metadata = {'Parameters': round(measured['params'] * 1e6)}
    if 'flops' in measured:
        metadata['FLOPs'] = round(measured['flops'] * 1e9)
    model = {
        'Name': row['config'],
        'In Collection': row['paper'],
        'Config': f'configs/{folder}/{row["config"]}.py',
        'Metadata': metadata,
    }
    results = [
        {'Task': task, 'Dataset': DATASETS[folder], 'Metrics': {metric: row[key]}}
        for key, (task, metric) in METRICS.items()
        if key in row
    ]
    return {**model, 'Results': results} if results else model


def _dump(content: dict) -> str:
    return HEAD + yaml.safe_dump(content, sort_keys=False, width=100)
