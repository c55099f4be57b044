"""Generate the tables that compare our models with the papers, and copy recorded ones.

tables.py                       print the tables
tables.py --results A.json ...  include accuracies written by tools/test.py --out
tables.py --write               update the tables in configs/*/README.md,
                                tools/model_converters/README.md, docs/deployment.md and
                                docs/study.md
tables.py --check               fail if a model deviates from its paper or a page is out of date
"""

import argparse
import re
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

from mmengine.fileio import load

from soft_mm.analysis.complexity import measure

ROOT = Path(__file__).parents[2]
FOLDERS = ('imagenet', 'coco', 'ade20k')
# Tables that these tools have written: tools/benchmarks/runtimes.py, and study.py.
RECORDED = {
    'runtimes': ROOT / 'tools/benchmarks/results/runtimes_cpu.md',
    'study': ROOT / 'tools/analysis_tools/results/study.md',
}
# Largest relative deviation from the paper.
TOLERANCES = {'params': 0.02, 'flops': 0.08}
# For each accuracy in papers.yml: column heading, metric name, and factor that makes it per cent.
ACCURACIES = {
    'top1': ('top-1', 'accuracy/top1', 1),
    'box_ap': ('box AP', 'coco/bbox_mAP', 100),
    'box_ap50': ('AP50', 'coco/bbox_mAP_50', 100),
    'box_ap75': ('AP75', 'coco/bbox_mAP_75', 100),
    'mask_ap': ('mask AP', 'coco/segm_mAP', 100),
    'mask_ap50': ('AP50', 'coco/segm_mAP_50', 100),
    'mask_ap75': ('AP75', 'coco/segm_mAP_75', 100),
    'miou': ('mIoU', 'mIoU', 1),
    'macc': ('mAcc', 'mAcc', 1),
}
# The accuracies of each table; those in one column are separated by slashes.
COLUMNS = {
    'imagenet': [('top1',)],
    'coco': [('box_ap', 'box_ap50', 'box_ap75'), ('mask_ap', 'mask_ap50', 'mask_ap75')],
    'ade20k': [('miou',), ('macc',)],
}


def config_file(folder: str, row: dict) -> Path:
    return ROOT / 'configs' / folder / f'{row["config"]}.py'


@cache
def papers() -> dict:
    return load(ROOT / 'configs/papers.yml')


def table(folder: str, results: dict[str, dict], name: str | None = None) -> Iterator[str]:
    """Lines of a Markdown table for the README.md beside the configs, and its footnotes.

    It has the rows of papers.yml with this ``table``, by default those without one.
    """
    sizes = folder == 'imagenet'  # the others have one size
    heads = [
        'model',
        *(['image'] if sizes else []),
        'params (M): paper',
        'ours',
        'multiply-adds (G): paper',
        'ours',
        "+ Newton's iteration",
    ]
    for keys in COLUMNS[folder]:
        heads += [f'{" / ".join(ACCURACIES[key][0] for key in keys)}: paper', 'ours']
    yield f'| {" | ".join(heads)} |'
    yield '|---' * len(heads) + '|'
    rows = [row for row in papers()[folder] if row.get('table') == name]
    for row in rows:
        ours = measure(config_file(folder, row))
        model = re.sub('_(8xb.*|fpn|coco)', '', row['config']).replace('_', ', ')
        cells = [f'[{model}]({row["config"]}.py){" (ours)" if row.get("ours") else ""}']
        cells += [ours['size'][0]] if sizes else []
        cells += [
            paper_number(row, 'params'),
            f'{ours["params"]:.2f}',
            paper_number(row, 'flops'),
            f'{ours["flops"]:.{2 if sizes else 0}f}',
            f'{ours["newton"]:.{2 if sizes else 0}f}' if ours['newton'] else '–',
        ]
        for keys in COLUMNS[folder]:
            cells += accuracies(folder, row, keys, results)
        yield f'| {" | ".join(map(str, cells))} |'
    used = {source for row in rows for source in row.get('sources', {})}
    for name, source in papers()['sources'].items():
        if name in used:
            yield ''
            yield f'{source["mark"]} {source["title"]}'


def paper_number(row: dict, key: str) -> str:
    """The paper's number with the mark of its source; a dash if there is none."""
    marks = [
        papers()['sources'][name]['mark']
        for name, keys in row.get('sources', {}).items()
        if key in keys
    ]
    return ''.join([str(row.get(key, '–')), *marks])


def accuracies(
    folder: str, row: dict, keys: tuple[str, ...], results: dict[str, dict]
) -> tuple[str, str]:
    """The cells with the paper's accuracies and ours; a dash if there are none."""
    measured = results.get(f'configs/{folder}/{row["config"]}.py', {})
    ours = [
        f'{scale * measured[metric]:.1f}' if metric in measured else '–'
        for _, metric, scale in map(ACCURACIES.get, keys)
    ]
    theirs = [paper_number(row, key) for key in keys]
    return tuple(' / '.join(numbers) if {*numbers} != {'–'} else '–' for numbers in (theirs, ours))


def conversions(results: dict[str, dict]) -> Iterator[str]:
    """Lines of the Markdown table of conversions, one for each of the authors' checkpoints."""
    yield '| model | command | config | top-1: paper | ours |'
    yield '|---' * 5 + '|'
    for row in papers()['imagenet']:
        if 'checkpoint' not in row:
            continue
        theirs, config = row['checkpoint'], row['config']
        ours = config.split('_')[0] + ('-384px' if config.endswith('384px') else '')
        tool = 'inline' if theirs.startswith('InLine') else 'soft'
        command = (
            f'python tools/model_converters/{tool}_to_mm.py {theirs}.pth checkpoints/{ours}.pth'
        )
        cells = [
            theirs,
            f'`{command}`',
            f'[{config}](../../configs/imagenet/{config}.py)',
            *accuracies('imagenet', row, ('top1',), results),
        ]
        yield f'| {" | ".join(map(str, cells))} |'


def differences() -> Iterator[str]:
    """Deviations from the papers that papers.yml does not list, and listed ones that are gone."""
    for folder in FOLDERS:
        for row in papers()[folder]:
            ours = measure(config_file(folder, row))
            known = papers()['disagreements'].get(row['config'], {})
            for key, tolerance in TOLERANCES.items():
                if key not in row:
                    continue
                far = abs(ours[key] - row[key]) > max(tolerance * row[key], rounding(row[key]))
                if far and key not in known:
                    yield (
                        f'{row["config"]}: {key} is {ours[key]:.2f}, which deviates from the '
                        f"paper's {row[key]} by more than {tolerance:.0%}"
                    )
                if not far and key in known:
                    yield f'{row["config"]}: {key} agrees, but papers.yml lists a disagreement'


def rounding(number: float) -> float:
    """Half a unit of the last digit of a paper's number."""
    return 0.5 * 10 ** -len(str(number).partition('.')[2])


def pages(results: dict[str, dict]) -> Iterator[tuple[Path, str]]:
    """The path of each page with tables and the text it should contain."""

    def render(match: re.Match, folder: str) -> str:
        name = match[2]
        if name == 'conversions':
            lines = conversions(results)
        elif name in RECORDED:
            lines = RECORDED[name].read_text().splitlines()
        else:
            lines = table(folder, results, None if name == folder else name)
        return '\n'.join([match[1], '', *lines, '', match[3]])

    for path in (
        ROOT / 'tools/model_converters/README.md',
        ROOT / 'docs/deployment.md',
        ROOT / 'docs/study.md',
        *(ROOT / f'configs/{folder}/README.md' for folder in FOLDERS),
    ):
        yield (
            path,
            re.sub(
                r'(<!-- table: (\w+) -->).*?(<!-- end of table -->)',
                partial(render, folder=path.parent.name),
                path.read_text(),
                flags=re.DOTALL,
            ),
        )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--results',
        type=Path,
        nargs='+',
        default=[],
        metavar='FILE',
        help='JSON files written by tools/test.py --out',
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        '--check',
        action='store_true',
        help='fail if a model deviates from its paper or a page is out of date',
    )
    action.add_argument('--write', action='store_true', help='update the tables in the pages')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    results = {}
    for path in args.results:
        result = load(path)
        results[result['config']] = result['metrics']
    if args.write:
        for path, text in pages(results):
            path.write_text(text)
    elif args.check:
        problems = [
            *differences(),
            *(
                f'{path.relative_to(ROOT)} is out of date: run tools/analysis_tools/tables.py --write'
                for path, text in pages(results)
                if not path.exists() or text != path.read_text()
            ),
        ]
        sys.exit('\n'.join(problems) or None)
    else:
        for folder in FOLDERS:
            for name in dict.fromkeys(row.get('table') for row in papers()[folder]):
                print(f'\n{name or folder}\n', *table(folder, results, name), sep='\n')


if __name__ == '__main__':
    main()
