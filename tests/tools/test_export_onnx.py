"""The exported file gives the same numbers in ONNX Runtime, and the tool refuses what it cannot do."""

import re
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

ROOT = Path(__file__).parents[2]
TOOL = 'deployment/export_onnx.py'
SOFT = 'configs/imagenet/soft-norm-tiny_8xb128-300e_in1k.py'
DEIT = 'configs/imagenet/inline-deit-tiny_8xb512-300e_in1k.py'
PVT = 'configs/imagenet/inline-pvt-tiny_8xb128-300e_in1k.py'
SWIN = 'configs/imagenet/inline-swin-tiny_8xb128-300e_in1k.py'
CSWIN = 'configs/imagenet/inline-cswin-tiny_8xb128-300e_in1k.py'
RETINANET = 'configs/coco/retinanet_soft-norm-tiny_fpn_1x_coco.py'
UPERNET = 'configs/ade20k/soft-norm-tiny_upernet_8xb2-160k_ade20k-512x512.py'
SIZES = (200, 333), (320, 448), (448, 192)
SHALLOW = ['model.backbone.depths=(1,1,1,1)']
MAPS = [f'stage{i}' for i in (1, 2, 3, 4)]
CASES = {
    'DeiT classifier': (DEIT, ['model.backbone.depths=(1,)'], 'network', ['scores']),
    'SOFT-Norm backbone': (SOFT, [*SHALLOW, 'model.backbone.out_type=featmap'], 'backbone', MAPS),
    'SOFT-Norm classifier': (SOFT, SHALLOW, 'network', ['scores']),
    'PVT classifier': (PVT, SHALLOW, 'network', ['scores']),
    'Swin backbone': (
        SWIN,
        ['model.backbone.depths=(2,2,2,2)', 'model.backbone.out_type=featmap'],
        'backbone',
        MAPS,
    ),
    'CSwin classifier': (CSWIN, SHALLOW, 'network', ['scores']),
}
LONG = [name for name in CASES if name != 'DeiT classifier']


def build(config: str, options: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    cfg = Config.fromfile(ROOT / config)
    cfg.merge_from_dict(options)
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model).eval()


@torch.no_grad()
def backbone_case(model: torch.nn.Module, size: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
    """Normalised pixels and the feature maps that the backbone makes of them."""
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    return image, list(model.backbone(image))


@torch.no_grad()
def classifier_case(model: torch.nn.Module, size: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
    """An image in BGR and the scores that mmpretrain gives it."""
    from mmpretrain.structures import DataSample

    generator = torch.Generator().manual_seed(1)
    image = torch.randint(256, (1, 3, *size), generator=generator, dtype=torch.uint8)
    (sample,) = model.test_step(dict(inputs=image, data_samples=[DataSample()]))
    return image, [sample.pred_score[None]]


PARTS = dict(backbone=backbone_case, network=classifier_case)


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in CASES]
)
def test_numbers(run_tool, parse_options, tmp_path, name):
    config, options, part, names = CASES[name]
    model = build(config, parse_options(options))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'weights.pth')
    done = run_tool(
        TOOL,
        config,
        tmp_path / 'model.onnx',
        '--part',
        part,
        '--checkpoint',
        tmp_path / 'weights.pth',
        '--cfg-options',
        *options,
        fresh=True,
    )
    assert len(re.findall(r'agrees with PyTorch to \S+e-0[4-9] ', done.stdout)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ['model.onnx', 'weights.pth']

    graph = onnx.load(tmp_path / 'model.onnx')
    assert {node.domain for node in graph.graph.node} == {''}
    assert not graph.functions
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
    assert [out.name for out in session.get_outputs()] == names
    for size in SIZES:
        if 'win' in name:
            size = tuple(side // 32 * 32 for side in size)
        image, expected = PARTS[part](model, size)
        for ours, out in zip(session.run(None, dict(image=image.numpy())), expected, strict=True):
            assert (torch.from_numpy(ours) - out).abs().max() < 1e-4 * out.abs().max()


def write_other_model(path: Path) -> None:
    torch.save(dict(state_dict={'conv.weight': torch.ones(3)}), path)


BAD = {
    'no such checkpoint': (DEIT, 'a.onnx', ['--checkpoint', 'absent.pth'], 'absent.pth'),
    'text': (DEIT, 'a.onnx', ['--checkpoint', 'text.pth'], 'is not a checkpoint'),
    'another model': (DEIT, 'a.onnx', ['--checkpoint', 'other.pth'], 'Missing key'),
    'no such config': ('configs/absent.py', 'a.onnx', [], 'absent.py'),
    'no folder': (DEIT, 'absent/a.onnx', [], 'there is no folder'),
    'suffix': (DEIT, 'a.pt', [], 'must end in .onnx'),
    'too small': (DEIT, 'a.onnx', ['--size', '64x224'], "'64x224' must be HxW"),
    'no size': (DEIT, 'a.onnx', ['--size', '224'], "'224' must be HxW"),
    'another detector': (
        RETINANET,
        'a.onnx',
        ['--cfg-options', 'model.type=ATSS'],
        'supports ImageClassifier, RetinaNet, MaskRCNN, EncoderDecoder, got ATSS',
    ),
    'soft NMS': (
        RETINANET,
        'a.onnx',
        ['--cfg-options', 'model.test_cfg.nms.type=soft_nms'],
        "model.test_cfg.nms.type must be 'nms', got 'soft_nms'",
    ),
    'sliding window': (
        UPERNET,
        'a.onnx',
        ['--cfg-options', 'model.test_cfg.mode=slide'],
        "model.test_cfg.mode must be 'whole', got 'slide'",
    ),
    'windows': (
        SWIN,
        'a.onnx',
        ['--size', '224x300'],
        '--size must be multiples of 32 for InLineSwin, which attends in windows or stripes, '
        'got 224x300',
    ),
    'random landmarks': (
        SOFT,
        'a.onnx',
        ['--cfg-options', 'model.backbone.landmarks=random'],
        "landmarks='random'",
    ),
}


@pytest.mark.parametrize('case', BAD)
def test_refuses(run_tool, tmp_path, case):
    config, out, options, message = BAD[case]
    (tmp_path / 'text.pth').write_text('not a checkpoint')
    write_other_model(tmp_path / 'other.pth')
    before = set(tmp_path.iterdir())
    options = [tmp_path / option if option.endswith('.pth') else option for option in options]
    done = run_tool(TOOL, config, tmp_path / out, *options, check=False)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert 'Traceback' not in done.stderr
    assert set(tmp_path.iterdir()) == before
