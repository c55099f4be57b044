import subprocess
import sys

import pytest

import soft_mm


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)


def test_import_loads_no_toolbox():
    done = python(
        'import sys, soft_mm; print({name.split(".")[0] for name in sys.modules} & '
        '{"mmcv", "mmdet", "mmseg", "mmpretrain", "timm", "torchvision"})'
    )
    assert done.stdout.strip() == 'set()', done.stderr


@pytest.mark.parametrize(
    ('module', 'distribution'), [('torch', 'torch'), ('mmengine', 'onedl-mmengine')]
)
def test_import_error_names_the_missing_requirement(module, distribution):
    done = python(
        'import importlib.util as util; find = util.find_spec\n'
        f'util.find_spec = lambda name: None if name == {module!r} else find(name)\n'
        'import soft_mm'
    )
    assert done.returncode
    assert f'ImportError: soft_mm needs {distribution}' in done.stderr


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain', 'mmengine'])
def test_builds_from_every_scope(scope):
    models = pytest.importorskip(f'{scope}.registry', reason=f'{scope} is not installed').MODELS
    assert isinstance(models.build(dict(type='soft_mm.SOFT', arch='tiny')), soft_mm.SOFT)
