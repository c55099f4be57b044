"""Make a page of every Markdown file of the repository, at the path that it has there.

Links between pages, and to files that are not pages, then work on the site as they do in the repository.
"""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
FOLDERS = ('docs', 'configs', 'csrc', 'soft_mm', 'tools')
LINK = re.compile(r'\]\(([^)#:]+)(?:#[^)]*)?\)')


def on_files(files: Files, config) -> Files:
    pages = [
        *ROOT.glob('*.md'),
        *(page for name in FOLDERS for page in ROOT.glob(f'{name}/**/*.md')),
    ]
    linked = {page.relative_to(ROOT).as_posix() for page in pages}
    for page in pages:
        folder = PurePosixPath(page.relative_to(ROOT).parent.as_posix())
        targets = (normpath(folder / target) for target in LINK.findall(page.read_text()))
        linked.update(target for target in targets if (ROOT / target).is_file())
    theme = [file for file in files if Path(file.src_dir) != Path(config.docs_dir)]
    return Files(
        [
            *theme,
            *(
                File(path, str(ROOT), config.site_dir, config.use_directory_urls)
                for path in sorted(linked)
            ),
        ]
    )
