"""tools/deployment/run_onnx.py predicts and draws with exported networks what predict.py does."""

import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import onnx
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

ROOT = Path(__file__).parents[2]
DEMO = 'configs/demo/retinanet_soft-norm-tiny_fpn_shapes.py'
CLASSIFIER, DETECTOR, SEGMENTER = (
    f'tests/tools/bad_input/{name}.py' for name in ('classifier', 'detector', 'segmenter')
)
SCALE = 'test_dataloader.dataset.pipeline.1.scale=(288,224)'
SMALL = ['model.backbone.depths=(1,1,1,1)', 'model.bbox_head.stacked_convs=1', SCALE]
SEMANTIC_FPN = """
_base_ = {base!r}
model = dict(
    neck=dict(type='FPN', in_channels=[8, 8, 8, 16], out_channels=8, num_outs=4),
    decode_head=dict(
        _delete_=True,
        type='FPNHead',
        in_channels=[8] * 4,
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=8,
        num_classes=150,
        norm_cfg=dict(type='BN'),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss'),
    ),
    auxiliary_head=None,
)
"""


class Case(NamedTuple):
    """The least network of a kind: its config, options for it, and options to draw all it detects."""

    config: str
    options: list[str]
    draw: list = []


CASES = {
    'classifier': Case(CLASSIFIER, []),
    'RetinaNet': Case(DEMO, [*SMALL, 'model.test_cfg.score_thr=0.001'], ['--score-thr', 0]),
    'Mask R-CNN': Case(DETECTOR, [SCALE], ['--score-thr', 0]),
    'UperNet': Case(SEGMENTER, [SCALE]),
    'Semantic FPN': Case('semantic_fpn.py', [SCALE]),
}
LONG = [name for name in CASES if name != 'Mask R-CNN']
RUNTIMES = (
    'onnxruntime',
    pytest.param(
        'openvino',
        marks=pytest.mark.skipif(find_spec('openvino') is None, reason='OpenVINO is not installed'),
    ),
)


@pytest.fixture(scope='module')
def exported(run_tool, parse_options, tmp_path_factory) -> Callable[[str], tuple]:
    """Export a network of random weights; return its config with options, checkpoint and file."""
    folder = tmp_path_factory.mktemp('exported')
    (folder / 'semantic_fpn.py').write_text(SEMANTIC_FPN.format(base=str(ROOT / SEGMENTER)))

    def export(name: str) -> tuple[Path, list, Path, Path]:
        case = CASES[name]
        config = folder / case.config if case.config == 'semantic_fpn.py' else ROOT / case.config
        options = ['--cfg-options', *case.options] if case.options else []
        weights, file = (
            folder / f'{name.replace(" ", "_")}{suffix}' for suffix in ('.pth', '.onnx')
        )
        if not file.exists():
            torch.manual_seed(0)
            cfg = Config.fromfile(config)
            cfg.merge_from_dict(parse_options(case.options) if case.options else {})
            init_default_scope(cfg.default_scope)
            meta = dict(dataset_meta=dict(classes=('ant', 'bee'))) if name == 'Mask R-CNN' else {}
            state = MODELS.build(cfg.model).state_dict()
            torch.save(dict(state_dict=state, meta=meta), weights)
            arguments = config, file, '--checkpoint', weights, *options
            done = run_tool('deployment/export_onnx.py', *arguments)
            assert 'train with model.backbone.num_landmarks=49' in done.stderr
        return config, options, weights, file

    return export


@pytest.fixture(scope='module')
def photo(shared) -> Path:
    return shared('data') / 'coco/val2017/000000439180.jpg'


def outputs(folder: Path, photo: Path) -> tuple[dict, np.ndarray]:
    """The prediction and the picture that a tool has written."""
    prediction = json.loads((folder / f'preds/{photo.stem}.json').read_text())
    return prediction, cv2.imread(str(folder / f'vis/{photo.name}')).astype(int)


def decode(masks: list[dict]) -> np.ndarray:
    """Run-length encoded masks as (number, H, W) bool."""
    from pycocotools import mask as coco_mask

    return coco_mask.decode(masks).transpose(2, 0, 1).astype(bool)


def share_of_counterparts(ours: dict, theirs: dict) -> float:
    """How many detections have a counterpart, in any order."""
    labels, scores, boxes = (
        [np.array(prediction[key]) for prediction in (ours, theirs)]
        for key in ('labels', 'scores', 'bboxes')
    )
    same = (
        (labels[0][:, None] == labels[1])
        & (abs(scores[0][:, None] - scores[1]) < 1e-4)
        & (abs(boxes[0][:, None] - boxes[1]) < 0.05).all(-1)
    )
    if 'masks' in ours:
        masks = [decode(prediction['masks']) for prediction in (ours, theirs)]
        for i, j in zip(*same.nonzero()):
            same[i, j] = (masks[0][i] != masks[1][j]).mean() < 1e-3
    return same.any(1).sum() / max(same.shape)


def label_map(prediction: dict) -> np.ndarray:
    return np.array(prediction['labels'])[decode(prediction['masks']).argmax(0)]


@pytest.mark.parametrize('runtime', RUNTIMES)
@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=pytest.mark.long if n in LONG else ()) for n in CASES]
)
def test_same_as_predict(name, runtime, exported, photo, run_tool, tmp_path):
    config, options, weights, file = exported(name)
    draw = CASES[name].draw
    run_tool('predict.py', config, weights, photo, '--out', tmp_path / 'torch', *draw, *options)
    run_tool(
        *('deployment/run_onnx.py', config, file, photo, '--runtime', runtime),
        *('--out', tmp_path / 'onnx', *draw, *options),
    )
    ours, picture = outputs(tmp_path / 'torch', photo)
    theirs, other = outputs(tmp_path / 'onnx', photo)
    assert ours.keys() == theirs.keys()
    if 'bboxes' in ours:
        assert len(ours['labels']) > 10
        assert share_of_counterparts(ours, theirs) >= 0.98
        assert set(ours['names']) == set(theirs['names'])
    elif 'masks' in ours:
        assert len(ours['labels']) > 2
        assert (label_map(ours) != label_map(theirs)).mean() < 1e-3
    else:
        assert theirs['names'] == ours['names']
        assert theirs['scores'] == pytest.approx(ours['scores'], abs=1e-5)
    unchanged = cv2.imread(str(photo)).astype(int)
    assert abs(picture - other).mean() < 0.05 * abs(picture - unchanged).mean()


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_no_detections(runtime, exported, photo, run_tool, tmp_path):
    """The mask head of a file gets no boxes if all scores are below the threshold."""
    config, options, _, file = exported('Mask R-CNN')
    model = onnx.load(file)
    (threshold,) = (t for t in model.graph.initializer if t.name == 'score_thr')
    threshold.CopyFrom(onnx.numpy_helper.from_array(np.float32(1), 'score_thr'))
    onnx.save(model, tmp_path / 'strict.onnx')
    run_tool(
        *('deployment/run_onnx.py', config, tmp_path / 'strict.onnx', photo),
        *('--runtime', runtime, '--out', tmp_path, *options),
    )
    prediction, _ = outputs(tmp_path, photo)
    assert prediction['labels'] == prediction['masks'] == []


@pytest.mark.long
def test_program_of_the_readme(exported, photo, tmp_path, monkeypatch, capsys):
    *_, file = exported('RetinaNet')
    (tmp_path / 'retinanet.onnx').symlink_to(file)
    (tmp_path / 'photo.jpg').symlink_to(photo)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / 'tools/deployment/README.md').read_text()
    (program,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    exec(program, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 100  # the most that the test_cfg allows
    assert all(
        re.fullmatch(r'class [0-3], score 0\.\d\d: \d+, \d+, \d+, \d+', line) for line in lines
    )


@pytest.fixture
def refused(load_module, tmp_path, monkeypatch, capsys):
    """Run the tool in this process with the detector's config; return its error message."""
    tool = load_module(ROOT / 'tools/deployment/run_onnx.py')
    assert cv2.imwrite(str(tmp_path / 'photo.png'), np.zeros((64, 64, 3), np.uint8))

    def run(model: Path, *args: str) -> str:
        inputs = str(tmp_path / 'photo.png'), '--out', str(tmp_path / 'out')
        command = ['run_onnx.py', str(ROOT / DETECTOR), str(model), *inputs, *args]
        monkeypatch.setattr('sys.argv', command)
        with pytest.raises(SystemExit) as exit:
            tool.main()
        assert not (tmp_path / 'out').exists()
        return f'{exit.value.code}{capsys.readouterr().err}'

    return run


def test_refuses_files(refused, tmp_path):
    assert 'absent.onnx' in refused(tmp_path / 'absent.onnx')
    (tmp_path / 'text.onnx').write_text('no model')
    assert 'ONNX Runtime cannot open the file' in refused(tmp_path / 'text.onnx')
    ends = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1])
        for name in ('image', 'stage1')
    )
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node('Identity', ['image'], ['stage1'])], 'g', *([end] for end in ends)
    )
    opset = onnx.helper.make_opsetid('', 20)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    onnx.save(model, tmp_path / 'backbone.onnx')
    error = refused(tmp_path / 'backbone.onnx')
    assert "must have the outputs ['boxes', 'scores', 'labels'] or " in error
    assert "of a whole network of mmdet, got ['stage1']" in error


def test_refuses_a_missing_runtime(refused, tmp_path, monkeypatch):
    monkeypatch.setattr('soft_mm.deployment.runtimes.find_spec', lambda name: None)
    error = refused(tmp_path / 'absent.onnx', '--runtime', 'openvino')
    assert 'the runtime openvino is not installed: pip install openvino' in error
    assert 'invalid choice' in refused(tmp_path / 'absent.onnx', '--runtime', 'tensorrt')
