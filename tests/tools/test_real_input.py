"""Every task trains, evaluates and reloads on real images, through tools/train.py and test.py.

Two images of COCO val2017 and two of ADE20K are overfitted from scratch, and scikit-learn's
handwritten digits are learnt, with the configs as they are but for the options below.

``test_short`` takes a few steps on small images, enough for the loss to fall; ``test_learns`` trains
until the model has learnt its images.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import pytest
from sklearn.datasets import load_digits

FROM_SCRATCH = ['model.backbone.init_cfg=None', 'model.backbone.drop_path_rate=0.']
IN_THIS_PROCESS = [
    f'{loader}_dataloader.{option}'
    for loader in ('train', 'val', 'test')
    for option in ('num_workers=0', 'persistent_workers=False')
]


def coco(folder: Path, size: int, steps: int) -> list[str]:
    """One step an epoch: both images."""
    return [
        *FROM_SCRATCH,
        *IN_THIS_PROCESS,
        'model.backbone.norm_eval=False',
        *(
            f'{loader}_dataloader.dataset.data_root={folder}/'
            for loader in ('train', 'val', 'test')
        ),
        *(
            f'{loader}_evaluator.ann_file={folder}/annotations/instances_val2017.json'
            for loader in ('val', 'test')
        ),
        'train_dataloader.dataset.ann_file=annotations/instances_val2017.json',
        'train_dataloader.dataset.data_prefix.img=val2017/',
        f'train_dataloader.dataset.pipeline.2.scale=({size},{size})',
        'train_dataloader.dataset.pipeline.3.prob=0.',
        f'val_dataloader.dataset.pipeline.1.scale=({size},{size})',
        f'test_dataloader.dataset.pipeline.1.scale=({size},{size})',
        'optim_wrapper.optimizer.lr=3e-4',
        'optim_wrapper.clip_grad.max_norm=1.',
        f'param_scheduler.0.end={max(steps // 20, 1)}',
        'param_scheduler.0.start_factor=0.1',
        f'param_scheduler.1.end={steps}',
        f'param_scheduler.1.milestones=[{steps * 8 // 10},{steps * 9 // 10}]',
        f'train_cfg.max_epochs={steps}',
        f'train_cfg.val_interval={steps}',
        f'default_hooks.checkpoint.interval={steps}',
    ]


def coco_boxes(folder: Path, size: int, steps: int) -> list[str]:
    """With detections of any score, so that there is something to evaluate after a few steps."""
    return [*coco(folder, size, steps), 'model.test_cfg.score_thr=0.001']


def coco_masks(folder: Path, size: int, steps: int) -> list[str]:
    """FPN and heads at half their width, for the CPU, and with GN, as training from scratch needs.

    The region head has the convolutions that GN can follow.
    """
    rois = 'model.roi_head.'
    return [
        *coco(folder, size, steps),
        *(
            f'model.{part}=128'
            for part in ('neck.out_channels', 'rpn_head.in_channels', 'rpn_head.feat_channels')
        ),
        *(
            f'{rois}{part}=128'
            for part in (
                'bbox_roi_extractor.out_channels',
                'bbox_head.in_channels',
                'bbox_head.conv_out_channels',
                'mask_roi_extractor.out_channels',
                'mask_head.in_channels',
                'mask_head.conv_out_channels',
            )
        ),
        f'{rois}bbox_head.type=Shared4Conv1FCBBoxHead',
        *(
            f'{part}.norm_cfg.{option}'
            for part in ('model.neck', f'{rois}bbox_head', f'{rois}mask_head')
            for option in ('type=GN', 'num_groups=32')
        ),
        f'model.train_cfg.rcnn.sampler.num={128 if steps > 20 else 32}',
        'model.test_cfg.rcnn.score_thr=0.001',
    ]


def ade20k(folder: Path, size: int, steps: int) -> list[str]:
    """Whole images, wider than high: two of the classes are strips at their borders."""
    crop = f'({size},{size * 7 // 5})'
    return [
        *FROM_SCRATCH,
        *IN_THIS_PROCESS,
        f'model.data_preprocessor.size={crop}',
        'model.decode_head.channels=128',  # a quarter of the width, for the CPU
        'model.decode_head.dropout_ratio=0.',
        'model.auxiliary_head.dropout_ratio=0.',
        *(f'{loader}_dataloader.dataset.data_root={folder}' for loader in ('train', 'val', 'test')),
        'train_dataloader.dataset.data_prefix.img_path=images/validation',
        'train_dataloader.dataset.data_prefix.seg_map_path=annotations/validation',
        f'train_dataloader.dataset.pipeline.2.scale=({4 * size},{size})',
        'train_dataloader.dataset.pipeline.2.ratio_range=(1.,1.)',
        f'train_dataloader.dataset.pipeline.3.crop_size={crop}',
        'train_dataloader.dataset.pipeline.4.prob=0.',
        *(
            f'train_dataloader.dataset.pipeline.5.{option}'
            for option in (
                'brightness_delta=0',
                'contrast_range=(1.,1.)',
                'saturation_range=(1.,1.)',
                'hue_delta=1',
            )
        ),
        f'val_dataloader.dataset.pipeline.1.scale=({4 * size},{size})',
        f'test_dataloader.dataset.pipeline.1.scale=({4 * size},{size})',
        'optim_wrapper.optimizer.lr=6e-4',
        'optim_wrapper.clip_grad.max_norm=1.',
        f'param_scheduler.0.end={max(steps // 20, 1)}',
        'param_scheduler.0.start_factor=0.1',
        f'param_scheduler.1.begin={max(steps // 20, 1)}',
        f'param_scheduler.1.end={steps}',
        f'train_cfg.max_iters={steps}',
        f'train_cfg.val_interval={steps}',
        f'default_hooks.checkpoint.interval={steps}',
    ]


def digits(folder: Path, size: int, epochs: int) -> list[str]:
    """With a warm-up of less than an epoch."""
    return [
        *(f'{loader}_dataloader.dataset.data_root={folder}' for loader in ('train', 'val', 'test')),
        *(
            f'{loader}_dataloader.dataset.pipeline.1.scale=({size},{size})'
            for loader in ('train', 'val', 'test')
        ),
        f'train_cfg.max_epochs={epochs}',
        f'train_cfg.val_interval={epochs}',
        f'param_scheduler.0.end={40 if epochs > 1 else 4}',
        f'param_scheduler.1.end={epochs}',
        f'default_hooks.checkpoint.interval={epochs}',
    ]


def digits_by(backbone: str, channels: int, out_type: str = 'avg_featmap') -> Callable:
    """The same with another backbone."""
    return lambda *args: [
        *digits(*args),
        'model.backbone._delete_=True',
        f'model.backbone.type=soft_mm.{backbone}',
        'model.backbone.arch=tiny',
        'model.backbone.img_size=64',
        f'model.backbone.out_type={out_type}',
        f'model.head.in_channels={channels}',
    ]


def write_digits(folder: Path, count: int) -> Path:
    """The first scans as an ImageFolder of 8×8 grey images, every fifth of them held out."""
    scans = load_digits()
    for i, (scan, label) in enumerate(zip(scans.images[:count], scans.target)):
        file = folder / ('val' if i % 5 == 0 else 'train') / str(label) / f'{i:04d}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(file), (scan * 15).astype('uint8'))
    return folder


@dataclass
class Task:
    """What a config learns.

    Attributes:
        config: its path.
        options: from the folder of the data, the size of the images and the number of steps, or for
            a classifier of epochs, to the options of the run.
        data: the images: of COCO or ADE20K, or the digits.
        full: size and steps of ``test_learns``.
        short: size and steps of ``test_short``.
        reach: the metrics, and what they must be at least after ``test_learns``.
        fresh: whether ``test_short`` runs the commands in interpreters of their own, as users do.
            One task of each toolbox does; for the others forked processes are as good, and cheaper.
    """

    config: str
    options: Callable[[Path, int, int], list[str]]
    data: str
    full: tuple[int, int]
    short: tuple[int, int]
    reach: dict[str, float]
    fresh: bool = False


BOXES, BOXES_AND_MASKS, SEGMENTS, CLASSES = (
    {'coco/bbox_mAP_50': 0.6},
    {'coco/bbox_mAP_50': 0.3, 'coco/segm_mAP_50': 0.3},
    {'mIoU': 70.0},
    {'accuracy/top1': 95.0},
)
COCO = 'configs/coco/{}_fpn_1x_coco.py'
ADE20K = 'configs/ade20k/{}_upernet_8xb2-160k_ade20k-512x512.py'
DIGITS = 'tests/tools/digits.py'
TASKS = {
    'retinanet': Task(
        COCO.format('retinanet_soft-norm-tiny'),
        coco_boxes,
        'coco',
        (480, 100),
        (192, 12),
        BOXES,
        fresh=True,
    ),
    'mask-rcnn': Task(
        COCO.format('mask-rcnn_soft-norm-tiny'),
        coco_masks,
        'coco',
        (384, 200),
        (160, 12),
        BOXES_AND_MASKS,
    ),
    'upernet': Task(
        ADE20K.format('soft-norm-small'),
        ade20k,
        'ade20k',
        (320, 250),
        (96, 16),
        SEGMENTS,
        fresh=True,
    ),
    'classifier': Task(DIGITS, digits, 'digits', (64, 10), (32, 1), CLASSES, fresh=True),
    'inline-pvt-retinanet': Task(
        COCO.format('retinanet_inline-pvt-tiny'), coco_boxes, 'coco', (480, 100), (192, 12), BOXES
    ),
    'inline-swin-upernet': Task(
        ADE20K.format('inline-swin-tiny'), ade20k, 'ade20k', (320, 250), (96, 16), SEGMENTS
    ),
    **{
        f'{name}-classifier': Task(DIGITS, options, 'digits', (64, epochs), (32, 1), CLASSES)
        for name, options, epochs in (
            ('inline-deit', digits_by('InLineDeiT', 192, 'cls_token'), 25),
            ('inline-pvt', digits_by('InLinePVT', 512), 10),
            ('inline-swin', digits_by('InLineSwin', 768), 10),
            ('inline-cswin', digits_by('InLineCSwin', 512), 10),
        )
    },
}


@pytest.fixture(params=TASKS)
def task(request) -> Task:
    return TASKS[request.param]


def images(task: Task, shared: Callable, tmp_path: Path, scans: int) -> Path:
    """The folder of a task's images, which for a classifier are the first ``scans`` digits."""
    if task.data != 'digits':
        return shared('data') / task.data
    return write_digits(tmp_path / 'digits', scans)


def train_and_test(
    task: Task, data: Path, amount: tuple[int, int], run_tool: Callable, tmp_path: Path
) -> tuple[list[float], dict, dict]:
    """The losses, the metrics at the end of training, and those of the reloaded checkpoint."""
    options = [
        *task.options(data, *amount),
        'randomness.seed=0',
        'default_hooks.logger.interval=1',
        'log_processor.window_size=1',
        'default_hooks.checkpoint.save_best=None',
    ]
    run_tool('train.py', task.config, '--work-dir', tmp_path, '--cfg-options', *options)
    (log,) = tmp_path.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    checkpoint = (tmp_path / 'last_checkpoint').read_text()
    run_tool(
        'test.py',
        task.config,
        checkpoint,
        '--work-dir',
        tmp_path / 'test',
        '--out',
        tmp_path / 'metrics.json',
        '--cfg-options',
        *options,
    )
    metrics = json.loads((tmp_path / 'metrics.json').read_text())['metrics']
    return [line['loss'] for line in lines if 'loss' in line], lines[-1], metrics


def test_short(task, shared, run_tool, tmp_path):
    """The loss falls, the evaluation runs, and the checkpoint reloads to the same numbers."""
    data = images(task, shared, tmp_path, 400)
    run = functools.partial(run_tool, fresh=task.fresh)
    losses, trained, reloaded = train_and_test(task, data, task.short, run, tmp_path)
    quarter = len(losses) // 4
    assert sum(losses[-quarter:]) < 0.97 * sum(losses[:quarter]), losses
    assert set(task.reach) <= set(reloaded)
    for name, value in reloaded.items():
        assert trained[name] == pytest.approx(value, nan_ok=True, rel=1e-4, abs=1e-4), name


@pytest.mark.long
def test_learns(task, shared, run_tool, tmp_path):
    data = images(task, shared, tmp_path, 1797)
    _, _, metrics = train_and_test(task, data, task.full, run_tool, tmp_path)
    print(metrics)
    for name, least in task.reach.items():
        assert metrics[name] >= least
