"""Fixtures that several folders of tests share, and the rule that a skipped test gives its reason."""

import argparse
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.utils import apply_to

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / 'shared'  # golden numbers and sample images; it may be absent
LOADERS = ('train', 'val', 'test')
# The files that take longest, in this order: a process that starts one of them last makes all wait.
LONGEST = (
    'test_pipelines.py',
    'test_real_input.py',
    'test_bad_input.py',
    'test_compile.py',
    'test_pages.py',
    'test_processes.py',
    'test_triton_kernels.py',
    'test_every_config.py',
    'test_benchmarks.py',
    'test_tables.py',
    'test_run_onnx.py',
    'test_progress.py',
    'test_runs.py',
    'test_bad_numbers.py',
    'test_resume.py',
    'test_wheel.py',
    'test_simd.py',
    'test_soft_attention.py',
    'test_checkpoints.py',
    'test_converters.py',
    'test_configs.py',
)

if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'  # Triton reads this when it is imported


@pytest.fixture
def gpu() -> str:
    """A GPU; without one the test is skipped."""
    if not torch.cuda.is_available():
        pytest.skip('there is no GPU')
    return 'cuda'


@pytest.fixture(params=['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def device(request) -> str:
    """Where Triton's kernels run: on a GPU, or without one on the CPU under Triton's interpreter."""
    if request.param == 'cuda':
        return request.getfixturevalue('gpu')
    if torch.cuda.is_available():
        pytest.skip('with a GPU there is no interpreter')
    from soft_mm.ops.backend import HAS_TRITON  # imports Triton, so TRITON_INTERPRET is set first

    if not HAS_TRITON:
        pytest.skip('there is no Triton, or one before 3.4')
    return 'cpu'


@pytest.fixture
def logged() -> list[str]:
    """Messages of MMEngine's logger, at the level of INFO whatever an earlier runner or tool has set."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(scope='session')
def shared():
    """Find a folder of golden numbers or images beside the checkout, or skip the test."""

    def folder(name: str) -> Path:
        if not (SHARED / name).is_dir():
            pytest.skip(f'there is no folder shared/{name} beside the checkout')
        return SHARED / name

    return folder


@pytest.fixture
def overwritten_parameters():
    """Moving a module replaces its parameters, as tensors without data need it."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield
    torch.__future__.set_overwrite_module_params_on_conversion(False)


@pytest.fixture(scope='session')
def golden(shared) -> Path:
    return shared('golden')


@pytest.fixture(scope='session')
def parse_options():
    """Parse the words of ``--cfg-options`` into a dict for ``Config.merge_from_dict``."""

    def parse(words: list[str]) -> dict:
        parser = argparse.ArgumentParser()
        parser.add_argument('--cfg-options', nargs='+', action=DictAction)
        return parser.parse_args(['--cfg-options', *words]).cfg_options

    return parse


@pytest.fixture(scope='session')
def training_state():
    """Read everything that a resumed run starts from, with the tensors as bytes, from a checkpoint."""

    def read(checkpoint: Path) -> dict:
        content = torch.load(checkpoint, weights_only=False)
        parts = {
            name: content[name]
            for name in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
        }
        parts['place'] = [content['meta'][name] for name in ('epoch', 'iter', 'seed')]
        return apply_to(parts, torch.is_tensor, lambda x: (x.dtype, x.numpy().tobytes()))

    return read


@pytest.fixture
def real_images(shared, tmp_path):
    """Give the options that make a config load the sample images, two in a training batch."""

    def options(cfg: Config) -> list[str]:
        return [
            *IMAGES[cfg.default_scope](shared('data'), tmp_path),
            *(
                f'{loader}_dataloader.{option}'
                for loader in LOADERS
                for option in ('num_workers=0', 'persistent_workers=False')
            ),
            'train_dataloader.batch_size=2',
            'val_dataloader.batch_size=1',
        ]

    return options


def imagenet(data: Path, folder: Path) -> list[str]:
    """Arrange the photographs of COCO and ADE20K as the first two of ImageNet's 1000 classes."""
    for split in ('train', 'val'):
        for i in range(1000):
            (folder / 'imagenet' / split / f'{i:03d}').mkdir(parents=True)
        for i, source in enumerate(('coco/val2017', 'ade20k/images/validation')):
            for image in (data / source).glob('*.jpg'):
                shutil.copy(image, folder / 'imagenet' / split / f'{i:03d}')
    return [f'{loader}_dataloader.dataset.data_root={folder}/imagenet' for loader in LOADERS]


def coco(data: Path, folder: Path) -> list[str]:
    return [
        *(f'{loader}_dataloader.dataset.data_root={data}/coco/' for loader in LOADERS),
        'train_dataloader.dataset.ann_file=annotations/instances_val2017.json',
        'train_dataloader.dataset.data_prefix.img=val2017/',
    ]


def ade20k(data: Path, folder: Path) -> list[str]:
    return [
        *(f'{loader}_dataloader.dataset.data_root={data}/ade20k' for loader in LOADERS),
        'train_dataloader.dataset.data_prefix.img_path=images/validation',
        'train_dataloader.dataset.data_prefix.seg_map_path=annotations/validation',
    ]


IMAGES = {'mmpretrain': imagenet, 'mmdet': coco, 'mmseg': ade20k}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and report.longrepr[2] in ('Skipped', 'Skipped: unconditional skip'):
        report.outcome = 'failed'
        report.longrepr = f'{item.nodeid} is skipped without a reason'
    return report
