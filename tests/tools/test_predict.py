"""tools/predict.py with the least model of each task, on scikit-learn's two photographs."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, init_default_scope
from sklearn.datasets import load_sample_images

from soft_mm.engine.predictor import Predictor

ROOT = Path(__file__).parents[2]
CONFIG = 'tests/tools/bad_input/{}.py'
NAMES = 'ant', 'bee', 'cow', 'dog', 'elk', 'fox', 'gnu'  # the configs have other names
TASKS = 'classifier', 'detector', 'segmenter'
OPTIONS = {
    'classifier': {
        f'model.{part}.num_classes': len(NAMES) for part in ('head', 'data_preprocessor')
    }
}


def load_config(task: str) -> Config:
    cfg = Config.fromfile(ROOT / CONFIG.format(task))
    cfg.merge_from_dict(OPTIONS.get(task, {}))
    init_default_scope(cfg.default_scope)
    return cfg


def command(task: str, checkpoint: Path, *args) -> list:
    options = [f'{key}={value}' for key, value in OPTIONS.get(task, {}).items()]
    return [
        *('predict.py', CONFIG.format(task), checkpoint, *args),
        *(['--cfg-options', *options] if options else []),
    ]


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> Path:
    """A folder of two photographs, 160×107 pixels each."""
    folder = tmp_path_factory.mktemp('photos')
    for name, photo in zip(('china', 'flower'), load_sample_images().images):
        small = cv2.resize(photo[..., ::-1], (160, 107), interpolation=cv2.INTER_AREA)
        assert cv2.imwrite(str(folder / f'{name}.png'), small)
    return folder


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    """Save a model of random weights; the segmenter's checkpoint has no class names."""
    folder = tmp_path_factory.mktemp('checkpoints')

    def save(task: str) -> Path:
        file = folder / f'{task}.pth'
        if not file.exists():
            torch.manual_seed(0)
            state = MODELS.build(load_config(task).model).state_dict()
            meta = {} if task == 'segmenter' else dict(dataset_meta=dict(classes=NAMES))
            torch.save(dict(state_dict=state, meta=meta), file)
        return file

    return save


@pytest.fixture(scope='module')
def predict(checkpoint, run_tool) -> Callable:
    """Run the tool with the model of a task."""

    def run(task: str, *args, **kwargs):
        return run_tool(*command(task, checkpoint(task), *args), **kwargs)

    return run


def contents(folder: Path) -> dict[str, dict]:
    """The JSON files of an output folder by their names."""
    files = sorted((folder / 'preds').rglob('*.json'))
    return {str(f.relative_to(folder / 'preds')): json.loads(f.read_text()) for f in files}


def pictures(folder: Path) -> list[str]:
    """The names of the pictures and videos of an output folder."""
    return sorted(str(f.relative_to(folder)) for f in folder.glob('vis/**/*') if f.is_file())


def directly(task: str, checkpoint: Path, image: Path):
    """What the model's own ``test_step`` returns for one image."""
    cfg = load_config(task)
    model = MODELS.build(cfg.model).eval()
    model.load_state_dict(torch.load(checkpoint)['state_dict'])
    steps = cfg.test_dataloader.dataset.pipeline
    pipeline = Compose([step for step in steps if step.type != 'LoadAnnotations'])
    with torch.no_grad():
        (sample,) = model.test_step(pseudo_collate([pipeline(dict(img_path=str(image), img_id=0))]))
    return sample


def are_alike(*images: np.ndarray) -> bool:
    """Whether images are the same up to what Matplotlib's resampling and MPEG-4 lose."""
    one, other = (cv2.blur(image, (9, 9)).astype(int) for image in images)
    return abs(one - other).mean() < 8  # with red and blue exchanged it is 16


def decode(masks: list[dict]) -> np.ndarray:
    """Run-length encoded masks as (number, H, W) bool."""
    from pycocotools import mask as coco_mask

    return coco_mask.decode(masks).transpose(2, 0, 1).astype(bool)


def check_classifier(prediction: dict, sample) -> None:
    scores, labels = sample.pred_score.topk(5)
    assert prediction['labels'] == labels.tolist()
    assert prediction['scores'] == pytest.approx(scores.tolist(), abs=1e-6)


def check_detector(prediction: dict, sample) -> None:
    expected = sample.pred_instances
    assert len(expected) > 1
    assert prediction['labels'] == expected.labels.tolist()
    assert prediction['scores'] == pytest.approx(expected.scores.tolist(), abs=1e-5)
    assert np.allclose(prediction['bboxes'], expected.bboxes, atol=1e-2)
    assert (decode(prediction['masks']) != expected.masks.numpy()).mean() < 1e-3


def check_segmenter(prediction: dict, sample) -> None:
    segments = sample.pred_sem_seg.data[0].numpy()
    masks = decode(prediction['masks'])
    assert (masks.sum(0) == 1).all()
    assert masks.sum((1, 2)).tolist() == prediction['areas']
    found = np.array(prediction['labels'])[masks.argmax(0)]
    assert (found != segments).mean() < 1e-3


CHECKS = dict(zip(TASKS, (check_classifier, check_detector, check_segmenter)))


@pytest.mark.parametrize('task', TASKS)
def test_a_folder_in_one_batch(task, photos, checkpoint, predict, tmp_path):
    """Both images in a batch get the predictions that the model has for each alone."""
    thr = [] if task == 'segmenter' else ['--score-thr', 0]
    done = predict(task, photos, '--out', tmp_path / 'out', '--batch-size', 2, *thr)
    assert '2/2' in done.stderr
    assert f'pictures: {tmp_path}/out/vis' in done.stdout
    assert pictures(tmp_path / 'out') == ['vis/china.png', 'vis/flower.png']
    for name, prediction in contents(tmp_path / 'out').items():
        file = photos / Path(name).with_suffix('.png')
        assert prediction['image'] == str(file)
        CHECKS[task](prediction, directly(task, checkpoint(task), file))
        names = NAMES
        if task == 'segmenter':
            from mmseg.datasets import ADE20KDataset

            names = ADE20KDataset.METAINFO['classes']
        assert prediction['names'] == [names[label] for label in prediction['labels']]
        drawn = cv2.imread(str(tmp_path / 'out/vis' / file.name))
        assert drawn.shape == (107, 160, 3)
        assert not np.array_equal(drawn, cv2.imread(str(file)))


def test_score_thr_leaves_the_picture_and_its_colours(photos, predict, tmp_path):
    predict('detector', photos / 'china.png', '--out', tmp_path, '--score-thr', 1)
    photo, drawn = (cv2.imread(str(f)) for f in (photos / 'china.png', tmp_path / 'vis/china.png'))
    assert are_alike(drawn, photo)
    assert len(contents(tmp_path)['china.json']['scores']) > 1


def test_segments_have_the_colours_of_their_classes(photos, predict, tmp_path):
    from mmseg.datasets import ADE20KDataset

    predict('segmenter', photos / 'china.png', '--out', tmp_path)
    photo, drawn = (
        cv2.imread(str(f))[..., ::-1].astype(float)
        for f in (photos / 'china.png', tmp_path / 'vis/china.png')
    )
    (prediction,) = contents(tmp_path).values()
    for label, mask in zip(prediction['labels'], decode(prediction['masks'])):
        colour = np.array(ADE20KDataset.METAINFO['palette'][label])
        if mask.sum() > 2000:  # a class name covers little of it
            assert np.median(abs(drawn[mask] - (photo[mask] + colour) / 2)) < 2


def test_images_of_other_sizes_make_another_batch(photos, predict, tmp_path):
    photo = cv2.imread(str(photos / 'china.png'))
    (tmp_path / 'in').mkdir()
    for name, image in (('a', photo), ('b', photo.transpose(1, 0, 2)), ('c', photo[:, ::-1])):
        assert cv2.imwrite(str(tmp_path / f'in/{name}.png'), image)
    for batch_size in 1, 3:
        out = tmp_path / str(batch_size)
        predict('segmenter', tmp_path / 'in', '--out', out, '--batch-size', batch_size)
    for one, three in zip(contents(tmp_path / '1').values(), contents(tmp_path / '3').values()):
        assert one['labels'] == three['labels']
        assert (decode(one['masks']) != decode(three['masks'])).mean() < 1e-3


def test_threads_share_a_predictor(photos, checkpoint):
    """Each thread gets the pictures of its own images, which all differ in size."""
    cfg = load_config('classifier')
    photo = cv2.imread(str(photos / 'china.png'))
    images = [(str(i), np.ascontiguousarray(photo[i:, i:])) for i in range(32)]
    shared, own = (Predictor(cfg, str(checkpoint('classifier')), 'cpu') for _ in range(2))
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: next(shared([image])), images))
    for (name, picture, prediction), alone in zip(together, own(images), strict=True):
        assert (name, prediction) == (alone[0], alone[2])
        assert np.array_equal(picture, alone[1])


def test_names_do_not_collide(photos, predict, tmp_path):
    for name in 'a/x.png', 'a/x.jpg', 'b/c/x.png', 'b/[1].PNG':
        file = tmp_path / 'in' / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((photos / 'china.png').read_bytes())
    folder, out = tmp_path / 'in', tmp_path / 'out'
    repeated = folder / 'a', folder / 'a/../a/x.png'
    done = predict('classifier', *repeated, folder / '**/*.png', '--out', out, '--quiet')
    assert 'images' not in done.stderr
    assert pictures(out) == ['vis/a/x.jpg.jpg', 'vis/a/x.png.png', 'vis/b/c/x.png.png']
    assert list(contents(out)) == ['a/x.jpg.json', 'a/x.png.json', 'b/c/x.png.json']
    predict('classifier', folder / 'b/[1].PNG', folder / 'b/c', '--out', out)
    assert {'vis/[1].PNG', 'vis/c/x.png'} < set(pictures(out))


def test_an_unreadable_image_among_others(photos, predict, tmp_path):
    (tmp_path / 'bad.jpg').write_text('no image')
    done = predict(
        'classifier', photos, tmp_path / 'bad.jpg', '--out', tmp_path / 'out', check=False
    )
    assert done.returncode == 1
    assert f'1 of 3 inputs cannot be read:\n  {tmp_path}/bad.jpg' in done.stderr
    assert len(pictures(tmp_path / 'out')) == len(contents(tmp_path / 'out')) == 2


@pytest.fixture(scope='module')
def clip(photos, tmp_path_factory) -> Path:
    """A video of five frames that pan over a photograph, 12.5 a second."""
    file = tmp_path_factory.mktemp('clip') / 'clip.avi'
    photo = cv2.imread(str(photos / 'china.png'))
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*'MJPG'), 12.5, (128, 96))
    for x in range(0, 25, 5):
        writer.write(photo[:96, x : x + 128])
    writer.release()
    return file


def frames(video: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(video))
    return [capture.read()[1] for _ in range(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))]


def test_a_video(clip, predict, tmp_path):
    """Frames get the predictions that they get as images."""
    read = frames(clip)
    (tmp_path / 'frames').mkdir()
    for i, frame in enumerate(read):
        assert cv2.imwrite(str(tmp_path / f'frames/{i}.png'), frame)
    predict('detector', tmp_path / 'frames', '--out', tmp_path / 'images', '--score-thr', 1)
    done = predict('detector', clip, '--out', tmp_path / 'out', '--score-thr', 1, '--batch-size', 2)
    assert '5/5' in done.stderr
    assert pictures(tmp_path / 'out') == ['vis/clip.mp4']
    video = contents(tmp_path / 'out')['clip.json']
    assert (video['video'], video['fps']) == (str(clip), 12.5)
    for frame, image in zip(video['frames'], contents(tmp_path / 'images').values(), strict=True):
        assert frame['labels'] == image['labels']
        assert np.allclose(frame['bboxes'], image['bboxes'], atol=1e-2)
    written = tmp_path / 'out/vis/clip.mp4'
    assert cv2.VideoCapture(str(written)).get(cv2.CAP_PROP_FPS) == 12.5
    for before, after in zip(read, frames(written), strict=True):
        assert are_alike(before, after)  # nothing is drawn


def test_a_webcam_records_until_ctrl_c(clip, checkpoint, fork_tool, tmp_path):
    """A file takes the place of the webcam, and the third frame that of the key."""
    done = fork_tool(
        *command('classifier', checkpoint('classifier'), 7, '--out', tmp_path),
        before=f"""
import cv2
class Webcam:
    def __init__(self, index):
        assert index == 7
        self.file, self.frames = VideoCapture({str(clip)!r}), 0
    def get(self, property):
        return 0.0
    def read(self):
        self.frames += 1
        if self.frames == 3:
            raise KeyboardInterrupt
        return self.file.read()
VideoCapture, cv2.VideoCapture = cv2.VideoCapture, Webcam
""",
    )
    assert done.returncode == 0, done.stdout
    assert len(contents(tmp_path)['webcam7.json']['frames']) == 2
    assert len(frames(tmp_path / 'vis/webcam7.mp4')) == 2


@pytest.fixture
def refused(load_module, photos, monkeypatch, capsys, tmp_path) -> Callable:
    """Run the tool in this process with wrong arguments; return its error."""
    tool = load_module(ROOT / 'tools/predict.py')
    monkeypatch.setattr(tool, 'set_checkpoint_reader', lambda _: None)  # it is of the process

    def run(config: str, *words: str) -> str:
        values = dict(photos=photos, tmp=tmp_path, photo=photos / 'china.png')
        arguments = [word.format(**values) for word in words]
        command = ['predict.py', str(ROOT / CONFIG.format(config)), 'none.pth', *arguments]
        monkeypatch.setattr('sys.argv', command)
        with pytest.raises(SystemExit) as exit:
            tool.main()
        assert exit.value.code not in (0, None)
        return f'{exit.value.code}{capsys.readouterr().err}'

    return run


OUT = '--out', '{tmp}/out'


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['{tmp}/none/*.jpg', *OUT], "none/*.jpg' must be an image (.bmp, .jpeg, .jpg, "),
        (['{photo}', '{tmp}/empty', *OUT], 'or a folder or pattern of them; nothing is found'),
        (['{tmp}/file', *OUT], "/file' must be an image"),
        (['{tmp}/bad.jpg', *OUT], '1 of 1 inputs cannot be read:\n  '),
        (['{tmp}/bad.avi', *OUT], '1 of 1 inputs cannot be read:\n  '),
        (['{photo}', '--out', '{tmp}/file'], '/file is a file'),
        (['{photo}', '--out', '{tmp}/file/a/b'], '/file is a file'),
        (['{photo}', *OUT, '--device', 'gpu'], "--device: 'gpu' cannot be used: "),
        (['{photo}', *OUT, '--device', 'cuda:99'], "--device: 'cuda:99' cannot be used: "),
        (['{photo}', *OUT, '--score-thr', '1.5'], "must be a number from 0 to 1, got '1.5'"),
        (['{photo}', *OUT, '--score-thr', 'nan'], "must be a number from 0 to 1, got 'nan'"),
        (['{photo}', *OUT, '--batch-size', '0'], "must be an integer >= 1, got '0'"),
        (['{photo}', *OUT, '--batch-size', 'two'], "must be an integer >= 1, got 'two'"),
        (
            ['{photo}', *OUT, '--cfg-options', 'default_scope=mmyolo'],
            "default_scope of the config must be one of mmpretrain, mmdet, mmseg, got 'mmyolo'",
        ),
    ],
)
def test_wrong_arguments(words, message, refused, tmp_path):
    for name in 'file', 'bad.jpg', 'bad.avi':
        (tmp_path / name).write_text('no image')
    (tmp_path / 'empty').mkdir()
    assert message in refused('classifier', *words)
    assert not (tmp_path / 'out').exists()


def test_segments_have_no_scores(refused, tmp_path):
    error = refused('segmenter', '{photo}', *OUT, '--score-thr', '0.5')
    assert 'score_thr must not be set, as mmseg predicts no scores, got 0.5' in error
    assert not (tmp_path / 'out').exists()


def test_a_missing_config(refused):
    error = refused('none', '{photo}', *OUT)
    assert 'No such file' in error and 'bad_input/none.py' in error


@pytest.mark.parametrize(
    ('kind', 'messages'),
    [
        ('none', ['none.pth can not be found']),
        ('other', ['is not a checkpoint of this model', 'decode_head.conv_seg.weight', 'head.fc']),
        ('code', ['contains pathlib.', 'which could run code when loaded', '--trust-pickle']),
    ],
)
def test_checkpoints_are_refused(kind, messages, photos, checkpoint, run_tool, tmp_path):
    files = dict(none=tmp_path / 'none.pth', other=checkpoint('segmenter'), code=tmp_path / 'c.pth')
    content = torch.load(checkpoint('classifier'))
    torch.save(dict(content, folder=tmp_path), files['code'])
    out = '--out', tmp_path / 'out'
    done = run_tool(*command('classifier', files[kind], photos, *out), check=False)
    assert done.returncode == 1
    for message in messages:
        assert message in done.stderr
    assert not (tmp_path / 'out').exists()
    if kind == 'code':
        run_tool(*command('classifier', files[kind], photos, *out, '--trust-pickle'))
        assert len(pictures(tmp_path / 'out')) == 2
