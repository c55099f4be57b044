"""Batches of real images as the pipelines and preprocessors of the configs produce them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).parents[2]
MEAN, STD = (
    torch.tensor(values)[:, None, None]  # of ImageNet's red, green and blue
    for values in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
)
IMAGENET = {
    'soft-tiny_8xb128-300e_in1k': (224, 248),
    'inline-pvt-tiny_8xb128-300e_in1k': (224, 256),
    'inline-deit-small_8xb128-300e_in1k-288px': (288, 329),
    'inline-deit-base_8xb64-300e_in1k-448px': (448, 512),
    'inline-swin-base_8xb64-30e_in1k-384px': (384, None),
}
COCO = {
    'retinanet_soft-norm-tiny_fpn_1x': {800},
    'mask-rcnn_soft-norm-tiny_fpn_1x': {800},
    'mask-rcnn_soft-norm-tiny_fpn_ms-3x': set(range(480, 801, 32)),
}


@pytest.fixture
def draw(real_images, parse_options):
    """Give a config's function from a split to a batch, as the model receives it."""

    def of(name: str):
        cfg = Config.fromfile(ROOT / f'configs/{name}.py')
        cfg.merge_from_dict(parse_options([*real_images(cfg), 'train_dataloader.batch_size=4']))
        init_default_scope(cfg.default_scope)
        preprocessor = MODELS.build(cfg.model).data_preprocessor

        def batch(split: str) -> tuple[Tensor, list]:
            data = next(iter(Runner.build_dataloader(cfg[f'{split}_dataloader'], seed=0)))
            data = preprocessor(data, training=split == 'train')
            return data['inputs'], data['data_samples']

        return batch

    return of


def colours(inputs: Tensor) -> Tensor:
    """Undo the normalisation, to values of 0 to 255."""
    values = inputs * STD + MEAN
    assert inputs.dtype == torch.float32
    assert values.min() > -0.01
    assert values.max() < 255.01
    assert values.std() > 10  # the image is not uniform
    return values


def whole_image(values: Tensor, path: str) -> None:
    """Check that the values are those of the picture in a file, in RGB order and at any size."""
    picture = torch.from_numpy(cv2.imread(path)[..., ::-1].copy()).float().mean((0, 1))
    torch.testing.assert_close(values.mean((1, 2)), picture, atol=1, rtol=0)


@pytest.mark.parametrize('name', IMAGENET)
def test_imagenet(draw, name):
    size, resized = IMAGENET[name]
    batch = draw(f'imagenet/{name}')
    inputs, samples = batch('train')
    assert inputs.shape == (4, 3, size, size)
    colours(inputs)
    for sample in samples:
        assert sample.gt_score.shape == (1000,)
        assert sample.gt_score.sum() == pytest.approx(1)

    inputs, (sample,) = batch('val')
    assert inputs.shape == (1, 3, size, size)
    assert sample.gt_label == 0
    values = colours(inputs)[0]
    if resized is None:
        whole_image(values, sample.img_path)
    else:  # the centre of the picture, whose shorter side is resized to this
        picture = Image.open(sample.img_path)
        scale = resized / min(picture.size)
        picture = picture.resize([int(side * scale) for side in picture.size], Image.BICUBIC)
        left, top = (round((side - size) / 2) for side in picture.size)
        middle = np.array(picture)[top : top + size, left : left + size]
        assert (values - torch.from_numpy(middle).permute(2, 0, 1)).abs().mean() < 2


def test_images_of_two_classes_are_mixed(draw):
    """In at least one of ten batches, as an image may be mixed with one of its own class."""
    batch = draw('imagenet/soft-tiny_8xb128-300e_in1k')
    scores = torch.stack([sample.gt_score for _ in range(10) for sample in batch('train')[1]])
    assert ((scores > 0) & (scores < 1)).any()


@pytest.mark.parametrize('name', COCO)
def test_coco(draw, name):
    batch = draw(f'coco/{name}_coco')
    for split in ('train', 'val'):
        inputs, samples = batch(split)
        assert inputs.shape[2] % 32 == inputs.shape[3] % 32 == 0
        for values, sample in zip(colours(inputs), samples, strict=True):
            height, width = sample.img_shape
            sides = COCO[name] if split == 'train' else {800}
            assert min(height, width) in sides or max(height, width) == 1333
            assert min(height, width) <= 800
            assert max(height, width) <= 1333
            assert sample.batch_input_shape == inputs.shape[2:]
            whole_image(values[:, :height, :width], sample.img_path)
            truth = sample.gt_instances
            boxes = truth.bboxes
            assert len(boxes)
            assert (boxes[:, :2] >= 0).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            assert (boxes[:, 2:] <= torch.tensor([width, height]) + 1e-3).all()
            assert truth.labels.min() >= 0
            assert truth.labels.max() < 80
            if name.startswith('mask') and split == 'train':
                for mask, (x1, y1, x2, y2) in zip(truth.masks.to_ndarray(), boxes.tolist()):
                    inside = mask[
                        max(int(y1) - 2, 0) : int(y2) + 3, max(int(x1) - 2, 0) : int(x2) + 3
                    ]
                    assert 0 < mask.sum() == inside.sum()


def test_coco_crops(draw):
    """Half of the images are cropped before the last of their resizes, in all of ten batches or none
    with a probability of 2^-19."""
    batch = draw('coco/mask-rcnn_inline-swin-tiny_fpn_1x_coco')
    cropped = []
    for _ in range(10):
        for sample in batch('train')[1]:
            (height, width), (whole_height, whole_width) = sample.img_shape, sample.ori_shape
            assert min(height, width) in range(480, 801, 32) or max(height, width) == 1333
            assert max(height, width) <= 1333
            scale = max(height / whole_height, width / whole_width)
            cropped.append(
                abs(height - scale * whole_height) > 1 or abs(width - scale * whole_width) > 1
            )
    assert len(cropped) == 20
    assert {*cropped} == {True, False}


def test_ade20k(draw):
    batch = draw('ade20k/soft-norm-tiny_upernet_8xb2-160k_ade20k-512x512')
    inputs, samples = batch('train')
    assert inputs.shape == (4, 3, 512, 512)
    colours(inputs)
    for sample in samples:
        labels = sample.gt_sem_seg.data
        assert labels.shape == (1, 512, 512)
        assert set(labels.unique().tolist()) <= {*range(150), 255}
        assert (labels < 150).any()

    inputs, (sample,) = batch('val')
    assert min(inputs.shape[2:]) == 512
    assert sample.gt_sem_seg.data.shape[1:] == sample.ori_shape
    whole_image(colours(inputs)[0], sample.img_path)
