"""Generate OpenMMLab's metafiles: model-index.yml and a metafile.yml for each folder of configs.

metafiles.py --write     update them from configs/papers.yml and our parameters and multiply-adds
metafiles.py --check     fail if one of them is out of date
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from mmengine.fileio import load

from soft_mm.analysis.complexity import measure

ROOT = Path(__file__).parents[2]
HEAD = "# Written by tools/analysis_tools/metafiles.py; the accuracies are the papers'.\n"
DATASETS = {'imagenet': 'ImageNet-1k', 'coco': 'COCO', 'ade20k': 'ADE20K'}
# OpenMMLab's names of the tasks and of their metrics, for each accuracy in papers.yml.
METRICS = {
    'Image Classification': {'top1': 'Top 1 Accuracy'},
    'Object Detection': {'box_ap': 'box AP', 'box_ap50': 'AP50', 'box_ap75': 'AP75'},
    'Instance Segmentation': {'mask_ap': 'mask AP', 'mask_ap50': 'AP50', 'mask_ap75': 'AP75'},
    'Semantic Segmentation': {'miou': 'mIoU', 'macc': 'mAcc'},
}


def files() -> Iterator[tuple[Path, str]]:
    """The path of each metafile and the text it should contain."""
    papers = load(ROOT / 'configs/papers.yml')
    for folder in DATASETS:
        used = {row['paper'] for row in papers[folder]}
        collections = [
            {
                'Name': name,
                'Paper': {'Title': paper['title'], 'URL': paper['url']},
                'README': f'configs/{folder}/README.md',
            }
            for name, paper in papers['papers'].items()
            if name in used
        ]
        models = [_model(folder, row) for row in papers[folder]]
        content = {'Collections': collections, 'Models': models}
        yield ROOT / 'configs' / folder / 'metafile.yml', _dump(content)
    index = {'Import': [f'configs/{folder}/metafile.yml' for folder in DATASETS]}
    yield ROOT / 'model-index.yml', _dump(index)


def _model(folder: str, row: dict) -> dict:
    config = f'configs/{folder}/{row["config"]}.py'
    measured = measure(ROOT / config)
    model = {
        'Name': row['config'],
        'In Collection': row['paper'],
        'Config': config,
        'Metadata': {
            'Training Data': DATASETS[folder],
            'Parameters': round(measured['params'] * 1e6),
            'FLOPs': round(measured['flops'] * 1e9),
        },
    }
    results = []
    for task, metrics in METRICS.items():
        found = {metric: row[key] for key, metric in metrics.items() if key in row}
        if found:
            results.append({'Task': task, 'Dataset': DATASETS[folder], 'Metrics': found})
    return {**model, 'Results': results} if results else model


def _dump(content: dict) -> str:
    return HEAD + yaml.safe_dump(content, sort_keys=False, width=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument('--check', action='store_true', help='fail if a metafile is out of date')
    action.add_argument('--write', action='store_true', help='update the metafiles')
    args = parser.parse_args()
    if args.write:
        for path, text in files():
            path.write_text(text)
    else:
        sys.exit(
            '\n'.join(
                f'{path.relative_to(ROOT)} is out of date: run tools/analysis_tools/metafiles.py --write'
                for path, text in files()
                if not path.exists() or path.read_text() != text
            )
            or None
        )


if __name__ == '__main__':
    main()
