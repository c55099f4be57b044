"""Mistakes in commands, configs and data are reported to the user, and nothing is written.

Messages name the field, its value and what is allowed. The tables are the list of them; bad
checkpoints are in test_checkpoints.py, bad arguments of test.py's ``--out`` in test_runs.py.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

LOADERS = 'train', 'val', 'test'


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), 'uint8')


def classifier(folder: Path) -> list[str]:
    """Write one image of a cat and one of a dog; return the options that load them."""
    for split in 'train', 'val':
        for name in 'cat', 'dog':
            write(folder / split / name / '0.jpg', picture())
    return [f'{loader}_dataloader.dataset.data_root={folder}' for loader in LOADERS]


def detector(folder: Path) -> list[str]:
    """Write two images with a cat and a dog in each; return the options that load them."""
    (folder / 'annotations').mkdir(parents=True)
    for split in 'train', 'val':
        for i in range(2):
            write(folder / f'{split}2017/{i}.jpg', picture())
        boxes = [
            (i, category, x, y, w, h)
            for i in range(2)
            for category, (x, y, w, h) in ((1, (4, 4, 20, 16)), (5, (30, 8, 24, 30)))
        ]
        (folder / f'annotations/instances_{split}2017.json').write_text(
            json.dumps(
                dict(
                    images=[
                        dict(id=i, file_name=f'{i}.jpg', width=64, height=48) for i in range(2)
                    ],
                    categories=[dict(id=1, name='cat'), dict(id=5, name='dog')],
                    annotations=[
                        dict(
                            id=i,
                            image_id=image,
                            category_id=category,
                            bbox=[x, y, w, h],
                            area=w * h,
                            iscrowd=0,
                            segmentation=[[x, y, x + w, y, x + w, y + h]],
                        )
                        for i, (image, category, x, y, w, h) in enumerate(boxes)
                    ],
                )
            )
        )
    return [
        *(f'{loader}_dataloader.dataset.data_root={folder}/' for loader in LOADERS),
        *(
            f'{loader}_evaluator.ann_file={folder}/annotations/instances_val2017.json'
            for loader in LOADERS[1:]
        ),
    ]


def segmenter(folder: Path) -> list[str]:
    """Write two images with a map of one class each; return the options that load them."""
    for split in 'training', 'validation':
        for i in range(2):
            write(folder / f'images/{split}/{i}.jpg', picture())
            write(folder / f'annotations/{split}/{i}.png', np.full((48, 64), 7, 'uint8'))
    return [f'{loader}_dataloader.dataset.data_root={folder}' for loader in LOADERS]


@pytest.fixture
def complaint(fork_tool, tmp_path):
    """Run tools/train.py on a task with a mistake in its options or data; return the final error."""

    def run(task: Callable, *options: str, spoil: Callable | None = None, before: str = '') -> str:
        data = tmp_path / 'data'
        given = task(data)
        if spoil:
            spoil(data)
        done = fork_tool(
            'train.py',
            f'tests/tools/bad_input/{task.__name__}.py',
            '--work-dir',
            tmp_path / 'work',
            '--cfg-options',
            *given,
            *options,
            before=before,
        )
        assert done.returncode == 1, done.stdout[-2000:]
        written = {path.suffix for path in tmp_path.glob('work/**/*') if path.is_file()}
        assert written <= {'.py', '.log'}  # the config and the log, but no weights and no scores
        return done.stdout[done.stdout.rindex('Error: ') :].replace(str(data), 'DATA')

    return run


# A wrong option of model.backbone, and part of the message that it gets.
BACKBONE = {
    'type=soft_mm.SOFTT': 'soft_mm.SOFTT is not in the mmpretrain::model registry',
    'arch=giant': "arch must be one of ['tiny', 'small', 'medium', 'large', 'huge'] or a dict, got 'giant'",
    'arch=3': 'or a dict, got 3',
    'arch.head=[1,1,1,1]': "'depths': 4, 'kernel_sizes': 3}, got {'channels': (8, 8, 8, 16), ",
    'arch.channels=[8,8,8]': "lengths, {'channels': 4, ",
    'arch.channels=8': "lengths, {'channels': 4, ",
    'arch.channels=[0,8,8,16]': 'channels of arch must be integers >= 1, got [0, 8, 8, 16]',
    'arch.channels=[8.5,8,8,16]': 'channels of arch must be integers >= 1, got [8.5,',
    "arch.channels=['a','b','c','d']": "channels of arch must be integers >= 1, got ['a',",
    'arch.num_heads=[3,1,1,1]': 'num_heads must divide the 8 channels, got 3',
    'arch.kernel_sizes=[8,5,3]': 'kernel_sizes must be odd, got 8',
    'depths=[1,1]': "got {'channels': (8, 8, 8, 16), 'num_heads': (1, 1, 1, 1), 'depths': [1, 1]",
    'depths=[1,-1,1,1]': 'depths of arch must be integers >= 0, got [1, -1, 1, 1]',
    'depths=2': "'depths': 2",
    'out_indices=4': 'out_indices must be integers from -4 to 3, got 4',
    'out_indices=all': "out_indices must be an integer or a sequence of integers, got 'all'",
    'out_indices=[]': 'out_indices must be an integer or a sequence of integers, got []',
    'out_indices=[2]': "out_type 'cls_token' needs out_indices=(3,), the stage with the class "
    'token, got (2,)',
    'out_type=logits': "out_type must be one of ['featmap', 'avg_featmap', 'cls_token'], got 'logits'",
    'frozen_stages=7': 'frozen_stages must be an integer from -1 to 4, got 7',
    'frozen_stages=all': 'frozen_stages must be an integer from -1 to 4, got all',
    'drop_path_rate=1.5': 'drop_path_rate must be a number in [0, 1), got 1.5',
    'drop_path_rate=high': "drop_path_rate must be a number in [0, 1), got 'high'",
    'drop_path=0.1': 'SOFT has no argument drop_path; it has arch, sym_norm, ',
    'img_size=0': 'img_size must be one or two positive integers, got 0',
    'img_size=[64,64,3]': 'img_size must be one or two positive integers, got [64, 64, 3]',
    'in_channels=0': 'in_channels must be a positive integer, got 0',
    'in_channels=1': 'SOFT has in_channels=1, got images with 3 channels',
    'norm_eval=no': "norm_eval must be True or False, got 'no'",
    'landmarks=pool': "landmarks must be one of ['conv', 'avg_pool', 'random', 'biased'], got 'pool'",
    'num_landmarks=0': 'num_landmarks must be None or at least 1, got 0',
    'num_landmarks=many': 'num_landmarks must be None or at least 1, got many',
    'solver=lu': "solver must be one of ['newton', 'iteration', 'ridge'], got 'lu'",
    'alpha_scope=all': "alpha_scope must be one of ['matrix', 'batch'], got 'all'",
}


@pytest.mark.parametrize('option', BACKBONE)
def test_backbone(option, complaint):
    assert BACKBONE[option] in complaint(classifier, f'model.backbone.{option}')


# A task, another wrong option of its config, and part of the message.
OPTIONS = [
    (
        classifier,
        'train_dataloader.dataset.pipeline.1.scale=16',
        'SOFT needs images of at least 29×29 pixels, for one landmark per stage, got 16×16',
    ),
    (
        classifier,
        'model.head.in_channels=32',
        "model.head.in_channels must match the backbone's, 16, got 32",
    ),
    (
        classifier,
        'model.head.num_classes=3',
        'model.head.num_classes must be 2, the number of classes of ImageNet, got 3',
    ),
    (
        classifier,
        'train_dataloader.dataset.metainfo=None',
        "The number of subfolders (2) doesn't match the number of specified classes (1000)",
    ),
    (
        classifier,
        'train_dataloader.dataset.split=training',
        "The split must be one of ['train', 'val', 'test'], but get 'training'",
    ),
    (
        detector,
        'model.neck.in_channels=[8,8,8,8]',
        "model.neck.in_channels must match the backbone's, [8, 8, 8, 16], got [8, 8, 8, 8]",
    ),
    (
        detector,
        'model.backbone.out_indices=[0,1,2]',
        "model.neck.in_channels must match the backbone's, [8, 8, 8], got [8, 8, 8, 16]",
    ),
    (
        detector,
        'model.roi_head.bbox_head.num_classes=1',
        'model.roi_head.bbox_head.num_classes must be 2, the number of classes of CocoDataset, got 1',
    ),
    (
        detector,
        'train_dataloader.dataset.metainfo.classes=cat',
        "metainfo.classes must be a tuple of names, got 'cat'",
    ),
    (
        detector,
        'train_dataloader.dataset.metainfo.classes=[cat,cow]',
        "metainfo.classes must be among the file's categories, ['cat', 'dog'], got 'cow'",
    ),
    (
        detector,
        'train_dataloader.dataset.metainfo.classes=[dog,cat]',
        "metainfo.classes must be in the order of the file's categories, ['cat', 'dog'], got ['dog'",
    ),
    (
        segmenter,
        'model.decode_head.in_channels=[8,8,8,8]',
        "model.decode_head.in_channels must match the backbone's, [8, 8, 8, 16], got [8, 8, 8, 8]",
    ),
    (
        segmenter,
        'model.decode_head.in_index=[0,1,2,4]',
        'model.decode_head.in_index must be below 4, the number of backbone outputs, got [0, 1, 2',
    ),
    (
        segmenter,
        'model.auxiliary_head.num_classes=3',
        'model.auxiliary_head.num_classes must be 150, the number of classes of ADE20KDataset, got 3',
    ),
    (segmenter, 'model.backbon.arch=tiny', "got an unexpected keyword argument 'backbon'"),
    (
        segmenter,
        'train_dataloader.dataset.pipeline.0.type=LoadImage',
        'LoadImage is not in the mmseg::transform registry',
    ),
    (
        segmenter,
        'train_dataloader.dataset.pipeline.9.prob=0.',
        'Index 9 exceeds the length of list',
    ),
    (
        segmenter,
        'train_dataloader.dataset.img_suffix=.jpeg',
        'ADE20KDataset needs images: 0 are listed in DATA/images/training',
    ),
    (
        segmenter,
        'train_dataloader.batch_size=0',
        'batch_size should be a positive integer value, but got batch_size=0',
    ),
    (segmenter, 'train_dataloader.num_workers=-1', 'num_workers option should be non-negative'),
    (segmenter, 'optim_wrapper.optimizer.lr=-1', 'Invalid learning rate: -1'),
    (
        segmenter,
        'param_scheduler.0.type=Linear',
        'Linear is not in the mmseg::parameter scheduler registry',
    ),
]


@pytest.mark.parametrize(('task', 'option', 'message'), OPTIONS, ids=[o for _, o, _ in OPTIONS])
def test_option(task, option, message, complaint):
    assert message in complaint(task, option)


TRAIN = 'annotations/instances_train2017.json'
BOX = (
    'annotations[0].bbox must be [x, y, width, height] in numbers up to 100000, width and height at '
    'least 0, got '
)


def edit(change: Callable[[dict], object], file: str = TRAIN) -> Callable[[Path], None]:
    def spoil(data: Path) -> None:
        content = json.loads((data / file).read_text())
        change(content)
        (data / file).write_text(json.dumps(content))

    return spoil


def annotation(**fields) -> Callable[[Path], None]:
    return edit(lambda content: content['annotations'][0].update(fields))


def without(key: str, field: str) -> Callable[[Path], None]:
    return edit(lambda content: content[key][0].pop(field))


def text(file: str, content: str) -> Callable[[Path], None]:
    return lambda data: (data / file).write_text(content)


def cut(file: str) -> Callable[[Path], None]:
    def spoil(data: Path) -> None:
        whole = (data / file).read_bytes()
        (data / file).write_bytes(whole[: len(whole) // 2])

    return spoil


def removed(path: str) -> Callable[[Path], None]:
    def spoil(data: Path) -> None:
        (shutil.rmtree if (data / path).is_dir() else Path.unlink)(data / path)

    return spoil


def drawn(file: str, image: np.ndarray) -> Callable[[Path], None]:
    return lambda data: write(data / file, image)


# Mistakes in a COCO annotation file, and part of the message of each.
ANNOTATIONS = {
    'no file': (removed(TRAIN), f"No such file or directory: 'DATA/{TRAIN}'"),
    'empty file': (text(TRAIN, ''), f'DATA/{TRAIN} is not valid JSON or is truncated: Expecting'),
    'half a file': (cut(TRAIN), f'DATA/{TRAIN} is not valid JSON or is truncated: '),
    'a list': (
        text(TRAIN, '[]'),
        f'DATA/{TRAIN}: the file must have lists of images, categories, annotations, has []',
    ),
    'no categories': (
        edit(lambda content: content.pop('categories')),
        "lists of images, categories, annotations, has ['images', 'annotations']",
    ),
    'no annotation': (
        edit(lambda content: content.update(annotations=[])),
        f'CocoDataset needs images: 2 are listed in DATA/{TRAIN}, and none is kept '
        "by filter_cfg={'filter_empty_gt': True, ",
    ),
    'small images': (
        edit(lambda content: [row.update(height=20) for row in content['images']]),
        "'min_size': 32}",
    ),
    'no file name': (
        without('images', 'file_name'),
        'images[0] must have id, file_name, width, height, got {',
    ),
    'no width': (without('images', 'width'), 'images[0] must have id, file_name, width, height'),
    'width as text': (
        edit(lambda content: content['images'][0].update(width='64')),
        "images[0].width must be int, got '64'",
    ),
    'an image twice': (
        edit(lambda content: content['images'][1].update(id=0)),
        'images[1].id must be unique, got 0 again',
    ),
    'an annotation twice': (
        edit(lambda content: content['annotations'][1].update(id=0)),
        'annotations[1].id must be unique, got 0 again',
    ),
    'no box': (
        without('annotations', 'bbox'),
        'annotations[0] must have id, image_id, category_id, bbox, area, got {',
    ),
    'no category of this id': (
        annotation(category_id=9),
        "annotations[0].category_id must be the id of one of the file's 2 categories, got 9",
    ),
    'no image of this id': (
        annotation(image_id=77),
        "annotations[0].image_id must be the id of one of the file's 2 images, got 77",
    ),
    'a box outside': (
        annotation(bbox=[100, 100, 10, 10]),
        'annotations[0].bbox, [x, y, width, height], must overlap the image, 64 wide '
        'and 48 high, got [100, 100, 10, 10]',
    ),
    'a box of NaN': (annotation(bbox=[float('nan'), 4, 10, 10]), f'{BOX}[nan, 4, 10, 10]'),
    'a box without end': (annotation(bbox=[4, 4, float('inf'), 10]), f'{BOX}[4, 4, inf, 10]'),
    'a box below nothing': (annotation(bbox=[20, 20, -10, -10]), f'{BOX}[20, 20, -10, -10]'),
    'a box of three': (annotation(bbox=[4, 4, 10]), f'{BOX}[4, 4, 10]'),
    'a box of text': (annotation(bbox=['4', 4, 10, 10]), f"{BOX}['4', 4, 10, 10]"),
    'no mask': (
        without('annotations', 'segmentation'),
        "annotations[0].segmentation must be a list of polygons or a dict of 'size' and "
        "'counts', got None",
    ),
    'a mask of NaN': (
        annotation(segmentation=[[4, 4, float('nan'), 4, 20, 20]]),
        'annotations[0].segmentation must be polygons [[x1, y1, x2, …], …] in numbers up to 100000, got '
        '[[4, 4, nan, 4, 20, 20]]',
    ),
    'a mask of another size': (
        annotation(segmentation=dict(size=[10, 10], counts=[0, 100])),
        "annotations[0].segmentation.size must be the image's height and width, [48, 64], got "
        '[10, 10]',
    ),
    'a mask of fewer pixels': (
        annotation(segmentation=dict(size=[48, 64], counts=[0, 100])),
        "annotations[0].segmentation.counts must sum to the image's 3072 pixels, got 100",
    ),
    'a class fewer to evaluate': (
        edit(lambda content: content['categories'].pop(), TRAIN.replace('train', 'val')),
        "instances_val2017.json: metainfo.classes must be among the file's categories, ['cat'], "
        "got 'dog'",
    ),
}


@pytest.mark.parametrize('mistake', ANNOTATIONS)
def test_annotations(mistake, complaint):
    spoil, message = ANNOTATIONS[mistake]
    assert message in complaint(detector, spoil=spoil)


CAT, IMAGE, MAP = 'train/cat/0.jpg', 'images/training/0.jpg', 'annotations/training/0.png'
LISTED = (
    'train_dataloader.dataset.split=',
    'train_dataloader.dataset.ann_file=train.txt',
    'train_dataloader.dataset.data_prefix=train',
)
SIZE = "the annotation must be a greyscale or palette image of the image's size, (48, 64), got "
# Mistakes in images, folders and segmentation maps: the task, a function that makes the mistake,
# further options, and part of the message.
FILES = {
    'no data': (classifier, removed(''), (), "No such file or directory: 'DATA/train'"),
    'data that is a file': (
        classifier,
        lambda data: (removed('')(data), data.write_text('')),
        (),
        "Not a directory: 'DATA/train'",
    ),
    'an unreadable folder': (
        classifier,
        lambda data: (data / 'train/cat').chmod(0),
        (),
        "Permission denied: 'DATA/train/cat'",
    ),
    'a class too many': (
        classifier,
        drawn('train/cow/0.jpg', picture()),
        (),
        "subfolders (3) doesn't match the number of specified classes (2)",
    ),
    'no images': (
        classifier,
        lambda data: [path.unlink() for path in data.glob('train/*/*')],
        (),
        "Found 0 files in subfolders of: {'img_path': 'DATA/train'}",
    ),
    'an empty image': (
        classifier,
        text(CAT, ''),
        (),
        f'DATA/{CAT}: 0.jpg must hold an image, got 0 bytes',
    ),
    'a text for an image': (classifier, text(CAT, 'cat'), (), f'failed to load image: DATA/{CAT}'),
    'half an image': (classifier, cut(CAT), (), f'failed to load image: DATA/{CAT}'),
    'no list': (classifier, None, LISTED, "No such file or directory: 'DATA/train.txt'"),
    'an empty list': (
        classifier,
        text('train.txt', ''),
        LISTED,
        'ImageNet needs images: 0 are listed in DATA/train.txt',
    ),
    'a list without labels': (
        classifier,
        text('train.txt', 'cat/0.jpg\n'),
        LISTED,
        "DATA/train.txt must have lines such as 'class/image.jpg 0', with a file and its class index",
    ),
    'a label too high': (
        classifier,
        text('train.txt', 'cat/0.jpg 7\ndog/0.jpg 7\n'),
        LISTED,
        'the label must be from 0 to 1, as there are 2 classes, got 7',
    ),
    'no such image': (
        classifier,
        text('train.txt', 'cat/1.jpg 0\ncat/1.jpg 0\n'),
        LISTED,
        "No such file or directory: 'DATA/train/cat/1.jpg'",
    ),
    'an image of another size': (
        detector,
        drawn('train2017/0.jpg', picture()[:40]),
        (),
        'DATA/train2017/0.jpg: height and width in the annotations must be those of the image, '
        '(40, 64), got (48, 64)',
    ),
    'no image': (
        detector,
        removed('train2017/0.jpg'),
        (),
        "No such file or directory: 'DATA/train2017/0.jpg'",
    ),
    'half an image, in a worker': (
        detector,
        cut('train2017/0.jpg'),
        ('train_dataloader.num_workers=1',),
        'DATA/train2017/0.jpg: failed to load image',
    ),
    'no folder of images': (
        segmenter,
        removed('images/training'),
        (),
        "No such file or directory: 'DATA/images/training'",
    ),
    'no map': (segmenter, removed(MAP), (), f"No such file or directory: 'DATA/{MAP}'"),
    'an empty map': (segmenter, text(MAP, ''), (), '0.png must hold an image, got 0 bytes'),
    'half a map': (segmenter, cut(MAP), (), f'DATA/{MAP}: image file is truncated'),
    'a text for a map': (segmenter, text(MAP, '7'), (), f'DATA/{MAP}: cannot identify image file'),
    'a map of another size': (
        segmenter,
        drawn(MAP, np.full((24, 32), 7, 'uint8')),
        (),
        f'DATA/{IMAGE} with DATA/{MAP}: {SIZE}(24, 32)',
    ),
    'a map of colours': (segmenter, drawn(MAP, picture()), (), f'{SIZE}(48, 64, 3)'),
    'a class too high': (
        segmenter,
        drawn(MAP, np.full((48, 64), 200, 'uint8')),
        (),
        f'DATA/{MAP}: the annotation must have classes from 1 to 150, or 0 or 255 '
        'to ignore a pixel, got [200]',
    ),
}
# Drops root's right to read any file. For other users this does nothing.
NO_RIGHTS = """
import ctypes
ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)())
"""


@pytest.mark.parametrize('mistake', FILES)
def test_files(mistake, complaint):
    task, spoil, options, message = FILES[mistake]
    before = NO_RIGHTS if mistake == 'an unreadable folder' else ''
    assert message in complaint(task, *options, spoil=spoil, before=before)


# Wrong commands, and part of the message. DATA/child.py is a config whose base is missing.
COMMANDS = [
    ('train.py DATA/none.py', 'DATA/none.py'),
    ('train.py DATA/child.py', "No such file or directory: 'DATA/./base.py'"),
    ('train.py CONFIG --ampp', 'unrecognized arguments: --ampp'),
    ('train.py CONFIG --amp int8', "invalid choice: 'int8' (choose from 'bfloat16', 'float16')"),
    ('train.py CONFIG --launcher ssh', "choose from 'none', 'pytorch', 'slurm', 'mpi')"),
    ('test.py CONFIG', 'the following arguments are required: checkpoint'),
]


@pytest.mark.parametrize(('command', 'message'), COMMANDS)
def test_command(command, message, fork_tool, tmp_path):
    (tmp_path / 'child.py').write_text("_base_ = './base.py'")
    words = [
        word.replace('DATA', str(tmp_path)).replace('CONFIG', 'tests/tools/bad_input/classifier.py')
        for word in command.split()
    ]
    done = fork_tool(*words)
    assert done.returncode
    assert message in done.stdout.replace(str(tmp_path), 'DATA')
    assert [path.name for path in tmp_path.iterdir()] == ['child.py']


@pytest.mark.parametrize(
    ('backend', 'options', 'message'),
    [
        ('fast', [], "backend (or SOFT_MM_BACKEND) must be one of ['torch', "),
        ('extension', ['model.backbone.arch.channels=[136,8,8,16]'], '128'),
    ],
)
def test_backend(backend, options, message, run_tool, monkeypatch, tmp_path):
    """In fresh interpreters, as SOFT_MM_BACKEND is read once, on import."""
    monkeypatch.setenv('SOFT_MM_BACKEND', backend)
    done = run_tool(
        'train.py',
        'tests/tools/bad_input/classifier.py',
        '--work-dir',
        tmp_path / 'w',
        '--cfg-options',
        *classifier(tmp_path / 'data'),
        *options,
        check=False,
        fresh=True,
    )
    assert done.returncode == 1
    assert message in done.stderr[done.stderr.rindex('Error: ') :]


@pytest.mark.parametrize(
    ('task', 'file'), [(classifier, CAT), (detector, 'train2017/0.jpg'), (segmenter, IMAGE)]
)
def test_grey_images_are_taken(task, file, fork_tool, tmp_path):
    options = task(tmp_path / 'data')
    write(tmp_path / 'data' / file, picture()[..., 0])
    done = fork_tool(
        'train.py',
        f'tests/tools/bad_input/{task.__name__}.py',
        '--work-dir',
        tmp_path / 'work',
        '--cfg-options',
        *options,
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_a_bad_map_stops_the_evaluation(fork_tool, tmp_path):
    """The metrics of a part of the images are not written."""
    config, folder = 'tests/tools/bad_input/segmenter.py', tmp_path / 'work'
    options = ['--work-dir', folder, '--cfg-options', *segmenter(tmp_path / 'data')]
    assert fork_tool('train.py', config, *options).returncode == 0
    file = tmp_path / 'data/annotations/validation/1.png'
    write(file, np.full((48, 64), 200, 'uint8'))
    done = fork_tool(
        'test.py', config, folder / 'iter_1.pth', '--out', tmp_path / 'metrics.json', *options
    )
    assert done.returncode == 1
    assert f'{file}: the annotation must have classes from 1 to 150' in done.stdout
    assert not (tmp_path / 'metrics.json').exists()
