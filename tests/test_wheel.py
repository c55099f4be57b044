"""A wheel built from the sdist does all that docs/use_by_name.md says, without the checkout."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / 'docs/use_by_name.md').read_text()
TOOLBOXES = ('mmdet', 'mmseg', 'mmpretrain')


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=environment | variables
    )
    assert done.returncode == 0, f'{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
    return done.stdout + done.stderr


def create_environment(folder: Path) -> Path:
    """An interpreter that sees the libraries of the current one, but not its soft_mm."""
    run(sys.executable, '-m', 'venv', '--without-pip', folder, cwd=ROOT)
    (site_packages,) = folder.glob('lib/python*/site-packages')
    libraries = [path for path in sys.path if path.endswith('-packages')]
    (site_packages / 'libraries.pth').write_text('\n'.join(libraries))
    return folder / 'bin/python'


@pytest.fixture(scope='module')
def without_torch(tmp_path_factory) -> dict[str, str]:
    """Variables with which setup.py finds no torch, and so saves the minute of compiling."""
    folder = tmp_path_factory.mktemp('stub')
    (folder / 'torch.py').write_text('raise ImportError(0)')
    return dict(PYTHONPATH=str(folder))


@pytest.fixture(scope='module')
def pip(without_torch, tmp_path_factory) -> Callable:
    """Run one of pip's commands offline, on the interpreter ``python``."""
    folder = tmp_path_factory.mktemp('pip')
    options = '--no-index', '--no-deps', '--no-build-isolation', '--quiet'

    def call(python: Path, command: str, *args: str | Path) -> None:
        pip = sys.executable, '-m', 'pip', '--python', python
        run(*pip, command, *options, *args, cwd=folder, **without_torch)

    return call


@pytest.fixture(scope='module')
def checkout(tmp_path_factory) -> Path:
    """A copy of this checkout, without what is not in the repository."""
    folder = tmp_path_factory.mktemp('checkout') / 'source'
    others = ('.*', 'build', 'checkpoints', 'data', 'dist', 'work_dirs', '*.egg-info', '*.so')
    return shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns('__pycache__', *others))


@pytest.fixture(scope='module')
def editable(checkout, pip, tmp_path_factory) -> Path:
    """An interpreter with the checkout installed in editable mode."""
    python = create_environment(tmp_path_factory.mktemp('editable'))
    pip(python, 'install', '--editable', checkout)
    return python


@pytest.fixture(scope='module')
def sdist(editable, checkout, without_torch) -> Path:
    """Built where the package is installed in editable mode, as in a developer's checkout."""
    run(sys.executable, 'setup.py', '--quiet', 'sdist', cwd=checkout, **without_torch)
    (archive,) = checkout.glob('dist/*.tar.gz')
    return archive


@pytest.fixture(scope='module')
def wheel(sdist, pip) -> Path:
    """The wheel that `make test-wheel` has built, or one without the extension."""
    if 'SOFT_MM_WHEEL' in os.environ:
        return Path(os.environ['SOFT_MM_WHEEL'])
    pip(Path(sys.executable), 'wheel', '--wheel-dir', sdist.parent, sdist)
    (archive,) = sdist.parent.glob('*.whl')
    return archive


@pytest.fixture(scope='module')
def python(wheel, pip, tmp_path_factory) -> Path:
    """An interpreter with the wheel installed."""
    python = create_environment(tmp_path_factory.mktemp('wheel'))
    pip(python, 'install', wheel)
    return python


@pytest.fixture(scope='module')
def mim(python) -> Path:
    """The folder of configs and tools that the wheel has installed."""
    (folder,) = python.parents[1].glob('lib/python*/site-packages/soft_mm/.mim')
    return folder


def names(archive: Path) -> set[str]:
    """Files of the sdist without its top folder, or of the wheel."""
    if archive.suffix == '.whl':
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as file:
        return {member.name.partition('/')[2] for member in file if member.isfile()}


def test_the_sdist_has_the_files_of_the_repository(sdist):
    if not (ROOT / '.git').exists():
        pytest.skip('this is not a checkout of the repository')
    tracked = run(
        'git', 'ls-files', '--cached', '--others', '--exclude-standard', cwd=ROOT
    ).splitlines()
    expected = {name for name in tracked if not name.startswith('.') and (ROOT / name).exists()}
    assert expected - names(sdist) == set()
    extra = names(sdist) - expected
    assert {name for name in extra if not name.startswith('soft_mm.egg-info/')} <= {
        'PKG-INFO',
        'setup.cfg',
    }


def test_the_wheel_has_configs_and_tools(sdist, wheel):
    parts = ('configs/', 'tools/', 'model-index.yml')
    expected = {f'soft_mm/.mim/{name}' for name in names(sdist) if name.startswith(parts)}
    assert {name for name in names(wheel) if '/.mim/' in name} == expected
    assert not [name for name in names(wheel) if name.startswith('tests/')]


def test_an_editable_installation_follows_the_checkout(editable, checkout, tmp_path):
    assert (checkout / 'soft_mm/.mim/configs').resolve() == checkout / 'configs'
    code = """
import soft_mm
from mmengine.hub import get_config
print(get_config('soft_mm::imagenet/soft-tiny_8xb128-300e_in1k.py').filename)
"""
    file = checkout / 'soft_mm/.mim/configs/imagenet/soft-tiny_8xb128-300e_in1k.py'
    assert run(editable, '-c', code, cwd=tmp_path).split()[-1] == str(file)


def test_the_build_has_the_extension():
    """setup.py's own command for .mim does not replace the one that compiles."""
    pytest.importorskip('torch.utils.cpp_extension', reason='there is no torch to build with')
    if not shutil.which(os.environ.get('CXX', 'c++')):
        pytest.skip('there is no C++ compiler')
    code = """
import setuptools
from distutils.core import run_setup
distribution = run_setup('setup.py', stop_after='init')
print(*[extension.name for extension in distribution.ext_modules], *sorted(distribution.cmdclass))
"""
    lines = run(sys.executable, '-c', code, cwd=ROOT).splitlines()
    assert 'soft_mm._C build_ext build_py' in lines


def test_the_wheel_has_the_extension(python, tmp_path):
    if 'SOFT_MM_WHEEL' not in os.environ:
        pytest.skip('only make test-wheel builds the extension')
    report = run(python, '-m', 'soft_mm.env', cwd=tmp_path)
    assert 'extension: built for CPU' in report


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [module for module in modules if find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f'{", ".join(missing)} not installed')


@needs(*TOOLBOXES)
def test_the_python_code_of_the_page(python, mim, tmp_path):
    blocks = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
    assert len(blocks) == 3
    inline = sorted(path.stem for path in (ROOT / 'configs/imagenet').glob('*inline*.py'))
    code = f"""
import cv2, numpy as np
assert cv2.imwrite('image.jpg', np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
{''.join(blocks)}
assert soft_mm.__path__ == [{str(mim.parent)!r}]
assert sorted(names) == {inline}
assert type(model.backbone) is soft_mm.SOFT and model.backbone.out_type == 'cls_token'
assert len(objects['bboxes']) == len(objects['labels'])
assert classes.shape == (48, 64)
"""
    run(python, '-c', code, cwd=tmp_path)


@pytest.fixture
def mine(tmp_path) -> Path:
    """The page's own config, in a folder of its own, and options that make it quick."""
    (config,) = re.findall(r'```python title="mine.py"\n(.*?)```', PAGE, re.DOTALL)
    for loader in ('train', 'val', 'test'):
        config += f'{loader}_dataloader = dict(num_workers=0, persistent_workers=False)\n'
    config += 'model = dict(test_cfg=dict(score_thr=0.0))\n'  # after two steps no score is high
    (tmp_path / 'mine.py').write_text(config)
    return tmp_path


SHAPES = ('data/shapes', '--train', '4', '--val', '2', '--size', '64')


@needs('mmdet')
def test_tools_with_a_config_that_inherits_from_the_package(python, mim, mine):
    def tool(script: str, *args: str) -> str:
        return run(python, mim / 'tools' / script, *args, cwd=mine)

    tool('misc/make_shapes.py', *SHAPES)
    log = tool('train.py', 'mine.py', '--work-dir', 'work')
    assert 'Failed to search registry' not in log
    tool('test.py', 'mine.py', 'work/epoch_1.pth', '--out', 'metrics.json')
    assert 'coco/bbox_mAP' in (mine / 'metrics.json').read_text()


@pytest.mark.long
@needs('mmdet', 'mim')
def test_the_commands_of_the_page(python, mine):
    commands = re.findall(r'^mim [a-z].*', PAGE, re.MULTILINE)
    assert [command.split()[1] for command in commands] == ['search', 'run', 'train', 'test']
    path = f'{python.parent}:{os.environ["PATH"]}'
    for command in commands:
        command = command.replace('data/shapes', ' '.join(SHAPES))
        output = run(python, '-m', *shlex.split(command), cwd=mine, PATH=path, HOME=str(mine))
        if 'search' in command:
            assert 'soft-norm-tiny_8xb128-300e_in1k' in output
            assert 'inline' not in output
    assert 'coco/bbox_mAP' in output
