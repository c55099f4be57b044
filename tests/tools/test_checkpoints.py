"""How tools/train.py and test.py handle damaged, malicious and unsuitable checkpoints."""

import functools
import os
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch


class Code:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope='module')
def trained(small_digits, fork_tool, tmp_path_factory) -> Path:
    """A work dir with the checkpoints of the last two epochs and the best one."""
    folder = tmp_path_factory.mktemp('work')
    config, options = small_digits
    done = fork_tool('train.py', config, '--work-dir', folder, *options)
    assert done.returncode == 0, done.stdout[-3000:]
    return folder


@pytest.fixture
def mark(tmp_path) -> Path:
    """The folder that exists once the code in a checkpoint has run."""
    return tmp_path / 'mark'


@pytest.fixture
def files(trained, mark, tmp_path) -> dict[str, Path]:
    """Unusable checkpoints, by what is wrong with them."""
    whole = (trained / 'epoch_4.pth').read_bytes()
    files = {name: tmp_path / f'{name}.pth' for name in ('truncated', 'text', 'code', 'other')}
    files['truncated'].write_bytes(whole[: len(whole) // 2])
    files['text'].write_text('weights')
    content = torch.load(trained / 'epoch_4.pth', weights_only=False)
    torch.save(dict(content, more=Code(mark)), files['code'])
    for state, prefix in ((content['state_dict'], ''), (content['ema_state_dict'], 'module.')):
        state[f'{prefix}head.fc.weight'] = state[f'{prefix}head.fc.weight'][:7]
        state[f'{prefix}head.extra'] = state.pop(f'{prefix}head.fc.bias')
    torch.save(content, files['other'])
    (best,) = trained.glob('best*.pth')
    return {**files, 'none': tmp_path / 'none.pth', 'weights': best}


NOT_WHOLE = ['is not a checkpoint that torch.load can read, or is truncated']
CODE = ['mkdir, which could run code', '--trust-pickle']
OTHER = [
    'is not a checkpoint of this model',
    'unexpected key in source state_dict: head.extra',
    'missing keys in source state_dict: head.fc.bias',
    'size mismatch for head.fc.weight: copying a param with shape torch.Size([7, 32])',
]
# The averaged weights are loaded first.
AVERAGES = [OTHER[0], 'size mismatch for module.head.fc.weight']
TEST = ('test.py', '{config}', '{file}', '--cfg-options', 'custom_hooks=[]')
RESUME = ('train.py', '{config}', '--resume', '{file}')
START = ('train.py', '{config}', '--cfg-options', 'load_from={file}', 'custom_hooks=[]')
BACKBONE = (
    'train.py',
    '{config}',
    '--cfg-options',
    'model.backbone.init_cfg.type=Pretrained',
    'model.backbone.init_cfg.checkpoint={file}',
    'model.backbone.init_cfg.prefix=backbone.',
)


@pytest.mark.parametrize(
    ('command', 'kind', 'messages'),
    [
        (TEST, 'truncated', NOT_WHOLE),
        (TEST, 'text', NOT_WHOLE),
        (TEST, 'code', CODE),
        (TEST, 'other', OTHER),
        (TEST, 'none', ['can not be found']),
        (RESUME, 'truncated', NOT_WHOLE),
        (RESUME, 'other', AVERAGES),
        (RESUME, 'weights', ['contains only weights and no optimizer state']),
        (START, 'code', CODE),
        (START, 'other', OTHER),
        (BACKBONE, 'code', CODE),
        (BACKBONE, 'truncated', NOT_WHOLE),
        (BACKBONE, 'none', ['init_cfg.checkpoint=', 'can not be found']),
    ],
)
def test_refused_by_name(command, kind, messages, files, mark, small_digits, fork_tool, tmp_path):
    config, (flag, *options) = small_digits
    words = [word.format(config=config, file=files[kind]) for word in command]
    options = options if flag in words else [flag, *options]
    done = fork_tool(*words, *options, '--work-dir', tmp_path / 'work')
    assert done.returncode == 1
    last = done.stdout[done.stdout.rindex('Error: ') :]
    for message in (str(files[kind]), *messages):
        assert message in last
    assert not mark.exists()
    assert not list(tmp_path.glob('work/*.pth'))


def test_trusted_code_runs(files, mark, small_digits, fork_tool, tmp_path):
    config, options = small_digits
    done = fork_tool(
        'test.py', config, files['code'], '--trust-pickle', '--work-dir', tmp_path, *options
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert mark.exists()


def test_downloaded_code_does_not_run(files, mark, small_digits, fork_tool, tmp_path):
    config, options = small_digits
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f'http://127.0.0.1:{server.server_port}/code.pth'
        done = fork_tool(
            'test.py',
            config,
            url,
            '--work-dir',
            tmp_path / 'work',
            *options,
            before=f"os.environ['TORCH_HOME'] = {str(tmp_path / 'cache')!r}",
        )
        server.shutdown()
    assert list((tmp_path / 'cache').rglob('code.pth'))
    assert done.returncode == 1
    assert 'UnpicklingError: Weights only load failed' in done.stdout
    assert not mark.exists()


def test_a_backbone_takes_its_part_of_a_classifier(trained, small_digits, fork_tool, tmp_path):
    """The checkpoint's head is not loaded, as it does not fit another task."""
    config, options = small_digits
    folder, eleven = options[1].split('=')[1], tmp_path / 'eleven'
    shutil.copytree(folder, eleven)
    for split in eleven.iterdir():
        (split / 'none').mkdir()
    options = [option.replace(folder, str(eleven)) for option in options]
    command = [word.format(config=config, file=trained / 'epoch_4.pth') for word in BACKBONE]
    done = fork_tool(
        *command,
        *options[1:],
        'model.head.num_classes=11',
        'train_cfg.max_epochs=1',
        'model.data_preprocessor.num_classes=11',
        'optim_wrapper.optimizer.lr=0.',
        '--work-dir',
        tmp_path,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    before, after = (
        torch.load(file, weights_only=False)['ema_state_dict']
        for file in (trained / 'epoch_4.pth', tmp_path / 'epoch_1.pth')
    )
    averaged = torch.load(trained / 'epoch_4.pth', weights_only=False)['state_dict']
    name = 'backbone.stages.0.blocks.0.mlp.fc1.weight'
    assert after[f'module.{name}'].equal(averaged[name])
    assert not after[f'module.{name}'].equal(before[f'module.{name}'])


def test_resume_passes_over_what_is_not_whole(trained, files, small_digits, fork_tool, tmp_path):
    config, options = small_digits
    (tmp_path / 'epoch_3.pth').write_bytes((trained / 'epoch_3.pth').read_bytes())
    (tmp_path / 'epoch_4.pth').write_bytes(files['truncated'].read_bytes())
    done = fork_tool('train.py', config, '--work-dir', tmp_path, '--resume', *options)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f'{tmp_path}/epoch_4.pth is truncated or corrupt: skipped' in done.stdout
    assert 'resumed epoch: 3, iter: 18' in done.stdout


def test_nothing_to_resume_starts_as_the_config_says(trained, small_digits, fork_tool, tmp_path):
    config, options = small_digits
    done = fork_tool(
        'train.py',
        config,
        '--work-dir',
        tmp_path,
        '--resume',
        *options,
        f'load_from={trained}/epoch_4.pth',
        'train_cfg.max_epochs=1',
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert f'--resume: {tmp_path} has no checkpoint' in done.stdout
    assert f'Load checkpoint from {trained}/epoch_4.pth' in done.stdout


def test_a_full_disk_leaves_the_checkpoint_before(small_digits, fork_tool, tmp_path):
    """A disk of 2 MB has room for one checkpoint of 1.3 MB, but not for a second."""
    if os.getuid():
        pytest.skip('only root can mount a small disk')
    config, options = small_digits
    disk, copy = tmp_path / 'disk', tmp_path / 'copy'
    disk.mkdir()
    options = [
        *options,
        'default_hooks.checkpoint.max_keep_ckpts=1',
        'default_hooks.checkpoint.save_best=None',
    ]
    done = fork_tool(
        'train.py',
        config,
        '--work-dir',
        disk,
        *options,
        before=f"""
import ctypes, shutil, subprocess
assert ctypes.CDLL(None).unshare(0x20000) == 0  # CLONE_NEWNS: mounts that end with the process
subprocess.run(['mount', '--make-rprivate', '/'], check=True)
subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', {str(disk)!r}], check=True)
try:
    runpy.run_path(sys.argv[0], run_name='__main__')
finally:
    shutil.copytree({str(disk)!r}, {str(copy)!r})
""",
    )
    assert done.returncode == 1
    assert f"No space left on device; nothing is written to: '{disk}/epoch_2.pth'" in done.stdout
    assert [path.name for path in copy.glob('*pth*')] == ['epoch_1.pth']
    done = fork_tool('train.py', config, '--work-dir', copy, '--resume', *options)
    assert done.returncode == 0, done.stdout[-3000:]
    assert 'resumed epoch: 1, iter: 6' in done.stdout
