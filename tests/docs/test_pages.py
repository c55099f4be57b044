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


def test_fine_tune(checkout):
    """The page's configs train, for one epoch each, from a checkpoint of a classifier."""
    torch.manual_seed(0)
    classifier = soft_mm.SOFT('tiny', sym_norm=True, out_type='cls_token').state_dict()
    pretrained = {f'backbone.{name}': tensor for name, tensor in classifier.items()}
    (checkout / 'checkpoints').mkdir()
    torch.save(
        dict(state_dict={**pretrained, 'head.fc.weight': torch.ones(1000, 512)}),
        checkout / 'checkpoints/soft-norm-tiny.pth',
    )
    ((_, shapes),) = blocks('docs/train_your_data.md', 'python')
    (checkout / 'shapes.py').write_text(shapes)
    make_shapes = f'tools/misc/make_shapes.py data/shapes{SMALL}'
    run(checkout, sys.executable, *make_shapes.split())
    commands = [text for _, text in blocks('docs/fine_tune.md', 'bash')]
    configs = [text for _, text in blocks('docs/fine_tune.md', 'python')]
    names, one_epoch = (
        ('fine_tuned', 'two_classes'),
        'train_cfg.max_epochs=1 train_cfg.val_interval=1',
    )
    for name, config, command in zip(names, configs, commands, strict=True):
        (checkout / f'{name}.py').write_text(config.replace('epoch_6', 'epoch_1'))
        run(checkout, 'sh', '-c', f'{command.strip()} --cfg-options {one_epoch}')
    logs, trained = zip(
        *(
            (
                next(folder.glob('*/*.log')).read_text(),
                torch.load(folder / 'epoch_1.pth', weights_only=False)['state_dict'],
            )
            for folder in (checkout / 'work_dirs' / name for name in names)
        )
    )
    assert 'the filters of the stem are averaged' in logs[0]
    assert 'bbox_head.retina_cls.weight (36, 128, 3, 3) instead of (18, 128, 3, 3)' in logs[1]
    for name in pretrained:
        frozen = name.startswith('backbone.stages.0.')
        if frozen and 'patch_embed.0.weight' not in name:
            assert trained[0][name].equal(pretrained[name]), name
        assert trained[1][name].equal(trained[0][name]) or not frozen, name
    neck = 'neck.fpn_convs.0.conv.weight'
    assert not trained[1][neck].equal(trained[0][neck])


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
    assert len(code) == 5
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
