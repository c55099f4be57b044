"""The option ``--table PAGE``, which writes the results of the families that ran into a page's table."""

import re
from pathlib import Path

import pytest

HEAD = '| family | config | our backbones | result | reason |\n|---|---|---|---|---|\n'
TABLE = re.compile(r'(<!-- table: pipelines -->\n).*?(\n<!-- end of table -->)', re.DOTALL)
ROW = re.compile(r'^\| .*? \| `(.*?)` \|.*\n', re.MULTILINE)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--table', type=Path, metavar='PAGE', help='page to write the results into')


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Replace the rows of the families that ran, sorted by their configs."""
    page = config.getoption('table', None)
    if page is None:
        return
    text = page.read_text()
    rows = {match[1]: match[0] for match in ROW.finditer(TABLE.search(text)[0])}
    for outcome in 'passed', 'xfailed', 'failed':
        for report in terminalreporter.getreports(outcome):
            for _, cells in report.user_properties:
                line = f'| {" | ".join(cells)} |\n'
                rows[ROW.match(line)[1]] = line
    table = HEAD + ''.join(rows[config] for config in sorted(rows))
    page.write_text(TABLE.sub(lambda match: f'{match[1]}\n{table}{match[2]}', text))
