"""The commands and the code of the pages run, in the order of the page, on a smaller dataset."""

import os
import re
import subprocess
import sys
from pathlib import Path

import mmseg
import nbformat
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from nbclient import NotebookClient

import soft_mm

ROOT = Path(__file__).parents[2]
SMALL = ' --train 8 --val 4 --size 64'


def blocks(page: str, *languages: str) -> list[tuple[str, str]]:
    """Language and text of each fenced block in one of the languages."""
    found = re.findall(r'^```(\w+)\n(.*?)^```', (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    return [(language, text) for language, text in found if language in languages]


@pytest.fixture
def checkout(tmp_path):
    """A folder that looks like a checkout, for commands with relative paths."""
    for name in ('configs', 'tools'):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def environment() -> dict[str, str]:
    """With this Python as ``python``."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ['PATH']))
    return dict(os.environ, PATH=path, PYTHONPATH=str(ROOT))


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, f'{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}'
    return done.stdout


def run_page(page: str, folder: Path, written: str | None = None) -> str:
    """Run every block; Python goes to the file ``written``, if there is one."""
    output = ''
    for language, text in blocks(page, 'python', 'bash'):
        if language == 'bash':
            text = text.replace('make_shapes.py data/shapes', f'make_shapes.py data/shapes{SMALL}')
            output += run(folder, 'sh', '-e', '-c', text)
        elif written:
            (folder / written).write_text(text)
        else:
            output += run(folder, sys.executable, '-c', text)
    return output


def test_tour(checkout):
    output = run_page('docs/tour.md', checkout)
    # What the page says that the first block prints.
    assert re.search(r'(?m)^    (64 channels.*)$', (ROOT / 'docs/tour.md').read_text())[1] in output
    assert list((checkout / 'work_dirs/demo/predictions').rglob('*.png'))
    assert (checkout / 'work_dirs/demo/attention.html').read_text().startswith('<!doctype html>')


def test_train_your_data(checkout):
    run_page('docs/train_your_data.md', checkout, written='shapes.py')
    for name in ('metrics.json', 'epoch_6.pth', 'pictures', 'predictions'):
        assert (checkout / 'work_dirs/shapes' / name).exists()


@pytest.mark.parametrize('number', range(3))
def test_swap(number, tmp_path):
    """Each config of the page is a model of its toolbox with our backbone."""
    configs = [text for _, text in blocks('docs/swap.md', 'python') if text.startswith('_base_')]
    assert len(configs) == 3
    (tmp_path / 'config.py').write_text(configs[number])
    (tmp_path / 'configs').symlink_to(Path(mmseg.__file__).parent / '.mim/configs')
    cfg = Config.fromfile(tmp_path / 'config.py')
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    assert type(model.backbone).__module__.startswith('soft_mm.')


def test_swap_in_pytorch(tmp_path, monkeypatch, capsys):
    """The page's code runs, and trains the backbone."""
    pytest.importorskip('torchvision', reason='torchvision is not installed')
    torch.manual_seed(0)
    pretrained = soft_mm.SOFT('tiny', sym_norm=True).state_dict()
    (tmp_path / 'checkpoints').mkdir()
    torch.save(pretrained, tmp_path / 'checkpoints/soft-norm-tiny.pth')
    monkeypatch.chdir(tmp_path)
    code = [text for _, text in blocks('docs/swap_in_pytorch.md', 'python')]
    assert len(code) == 4
    page = {}
    exec('\n'.join(code), page)

    names, *maps = capsys.readouterr().out.splitlines()
    assert eval(names) == [f'inline-pvt-{size}' for size in ('tiny', 'small', 'medium', 'large')]
    assert maps[0] == '(1, 64, 32, 40) 64 4'
    assert maps[3] == '(1, 512, 4, 5) 512 32'
    losses = {'loss_classifier', 'loss_box_reg', 'loss_objectness', 'loss_rpn_box_reg'}
    assert page['losses'].keys() == losses
    assert all(loss.isfinite() for loss in page['losses'].values())
    for name, parameter in page['backbone'].named_parameters():
        torch.testing.assert_close(parameter, pretrained[name], rtol=0, atol=0)
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name
    for prediction in page['predictions']:
        assert prediction['boxes'].shape == (*prediction['labels'].shape, 4)
        assert prediction['scores'].isfinite().all()


def test_notebook(checkout, monkeypatch):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(ROOT / 'notebooks/tour.ipynb', as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace('--train 200 --val 20', SMALL)
    NotebookClient(notebook, resources=dict(metadata=dict(path=str(checkout)))).execute()
    assert list((checkout / 'work_dirs/tour/predictions').rglob('*.png'))


def test_readme():
    (text,) = [t for _, t in blocks('README.md', 'python') if 'build_backbone' in t]
    assert run(ROOT, sys.executable, '-c', text) == '[128, 320, 512] [8, 16, 32]\n'
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 120
