"""The options of tools/train.py, test.py and the launch scripts."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
DEMO = 'configs/demo/retinanet_soft-norm-tiny_fpn_shapes.py'
# Earlier versions of torch cannot read the checkpoints of MMEngine's runs with weights_only.
TRUST = ['--trust-pickle'] if torch.__version__ < (2, 6) else []


@pytest.fixture(scope='module')
def shapes(tmp_path_factory, run_tool) -> Path:
    folder = tmp_path_factory.mktemp('data') / 'shapes'
    run_tool('misc/make_shapes.py', folder, '--train', 8, '--val', 4, '--size', 96)
    return folder


def options(folder: Path, epochs: int) -> list[str]:
    return [
        # Keep detections of any score: after two steps no score is high.
        '--cfg-options',
        'model.test_cfg.score_thr=0.',
        f'train_cfg.max_epochs={epochs}',
        f'train_cfg.val_interval={epochs}',
        *(
            f'{loader}_dataloader.dataset.data_root={folder}/'
            for loader in ('train', 'val', 'test')
        ),
        *(
            f'{loader}_dataloader.{option}'
            for loader in ('train', 'val', 'test')
            for option in ('num_workers=0', 'persistent_workers=False')
        ),
        *(
            f'{loader}_evaluator.ann_file={folder}/annotations/instances_val.json'
            for loader in ('val', 'test')
        ),
    ]


@pytest.fixture(scope='module')
def trained(shapes, tmp_path_factory, run_tool) -> Path:
    """A work dir with the checkpoint of a run of two epochs of two steps."""
    folder = tmp_path_factory.mktemp('work')
    run_tool('train.py', DEMO, '--work-dir', folder, *options(shapes, 2), fresh=True)
    return folder


def test_resume_goes_on_from_the_last_checkpoint(trained, shapes, run_tool):
    done = run_tool(
        'train.py', DEMO, '--work-dir', trained, '--resume', *TRUST, *options(shapes, 3)
    )
    assert 'resumed epoch: 2, iter: 4' in done.stdout + done.stderr
    assert (trained / 'epoch_3.pth').exists()


def test_test_writes_metrics_predictions_and_pictures(trained, shapes, run_tool, tmp_path):
    arguments = DEMO, trained / 'epoch_2.pth', '--work-dir', tmp_path / 'work', *TRUST
    done = run_tool(
        'test.py',
        *arguments,
        '--out',
        tmp_path / 'metrics.json',
        '--show-dir',
        tmp_path / 'pictures',
        *options(shapes, 2),
    )
    result = json.loads((tmp_path / 'metrics.json').read_text())
    assert result['config'] == DEMO
    assert f'coco/bbox_mAP_50: {result["metrics"]["coco/bbox_mAP_50"]}' in done.stdout
    assert sorted(p.name for p in (tmp_path / 'pictures').glob('*.png')) == [
        f'{i:06d}.png' for i in range(4)
    ]
    run_tool('test.py', *arguments, '--out', tmp_path / 'predictions.pkl', *options(shapes, 2))
    predictions = pickle.loads((tmp_path / 'predictions.pkl').read_bytes())
    assert [set(p['pred_instances']) for p in predictions] == [{'bboxes', 'labels', 'scores'}] * 4


def test_tensorboard_gets_what_the_log_has(shapes, run_tool, tmp_path):
    accumulator = pytest.importorskip(
        'tensorboard.backend.event_processing.event_accumulator',
        reason='tensorboard is not installed',
    )
    run_tool(
        'train.py',
        DEMO,
        '--work-dir',
        tmp_path,
        '--tensorboard',
        *options(shapes, 1),
        'default_hooks.logger.interval=1',
    )
    (log,) = tmp_path.glob('*/vis_data/scalars.json')
    losses = [
        line['loss'] for line in map(json.loads, log.read_text().splitlines()) if 'loss' in line
    ]
    events = accumulator.EventAccumulator(str(log.parent)).Reload()
    assert [event.value for event in events.Scalars('loss')] == pytest.approx(losses)
    assert 'coco/bbox_mAP' in events.Tags()['scalars']


def test_auto_scale_lr(shapes, run_tool, tmp_path):
    """With 4 images a step the learning rate is a quarter of that for 16."""
    done = run_tool(
        'train.py', DEMO, '--work-dir', tmp_path, '--auto-scale-lr', *options(shapes, 1)
    )
    assert 'Scaling the original LR by 0.25' in done.stdout + done.stderr


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            ['train.py', DEMO, '--auto-scale-lr', '--cfg-options', 'auto_scale_lr=None'],
            'no auto_scale_lr.base_batch_size',
        ),
        (['train.py', 'configs/none.py'], 'configs/none.py'),
        (['test.py', DEMO, 'x.pth', '--out', 'x.txt'], 'must end in .json'),
        (['test.py', DEMO, 'x.pth', '--out', 'none/x.json'], 'there is no folder none'),
    ],
)
def test_bad_arguments(arguments, message, run_tool):
    done = run_tool(*arguments, check=False)
    assert done.returncode
    assert message in done.stderr


def test_a_missing_checkpoint_is_named(shapes, run_tool, tmp_path):
    done = run_tool(
        'test.py', DEMO, 'x.pth', '--work-dir', tmp_path, *options(shapes, 1), check=False
    )
    assert done.returncode
    assert 'x.pth can not be found' in done.stderr


def launch(script: str, *args, **env) -> subprocess.CompletedProcess:
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    return subprocess.run(
        [f'tools/{script}', *map(str, args)],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env={**os.environ, 'PATH': path, **env},
    )


def test_two_processes_train_and_test(shapes, free_port, tmp_path):
    train = launch(
        'dist_train.sh', DEMO, 2, '--work-dir', tmp_path, *options(shapes, 1), PORT=free_port()
    )
    assert train.returncode == 0, train.stderr[-3000:]
    (log,) = tmp_path.glob('*/*.log')  # only the first process writes one
    assert 'Epoch(train) [1][1/1]' in log.read_text()  # 8 images in two batches of 4, at once
    test = launch(
        'dist_test.sh',
        DEMO,
        tmp_path / 'epoch_1.pth',
        2,
        '--work-dir',
        tmp_path,
        '--out',
        tmp_path / 'metrics.json',
        *TRUST,
        *options(shapes, 1),
        PORT=free_port(),
    )
    assert test.returncode == 0, test.stderr[-3000:]
    assert test.stdout.count('coco/bbox_mAP:') >= 1
    assert json.loads((tmp_path / 'metrics.json').read_text())['metrics']


def test_slurm_starts_a_launcher_on_every_node(tmp_path):
    """A stand-in for srun runs the command once per node, as Slurm does, and echoes its arguments."""
    for name, body in {
        'srun': 'echo "$@" >&2\nwhile [ "$1" != bash ]; do shift; done\n'
        'for node in 0 1; do SLURM_NODEID=$node SLURM_JOB_NODELIST=n[0-1] "$@"; done',
        'scontrol': 'printf "node-a\\nnode-b\\n"',
        'python': 'echo "$@"',
    }.items():
        (tmp_path / name).write_text(f'#!/bin/bash\n{body}\n')
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ['tools/slurm_run.sh', 'gpu', 'job', 'tools/dist_train.sh', DEMO, '4', '--amp'],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env={
            **os.environ,
            'PATH': f'{tmp_path}:{os.environ["PATH"]}',
            'NNODES': '2',
            'GPUS': '4',
            'PORT': '29999',
            'SRUN_ARGS': '--time 10 --qos low',
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace(f'{ROOT}/', '').splitlines() == [
        f'-m torch.distributed.run --nnodes 2 --node-rank {rank} --nproc-per-node 4 '
        '--master-addr node-a --master-port 29999 tools/train.py '
        f'{DEMO} --launcher pytorch --amp'
        for rank in (0, 1)
    ]
    assert '--partition gpu --job-name job --nodes 2' in done.stderr
    assert '--gres gpu:4 --cpus-per-task 64 --kill-on-bad-exit=1 --time 10 --qos low' in done.stderr


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_run.sh'])
def test_launchers_print_their_usage(script):
    done = launch(script)
    assert done.returncode == 2
    assert f'tools/{script}' in done.stderr
