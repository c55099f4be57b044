"""The benchmark tools run and report, on images that are too small for meaningful numbers."""

import argparse
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config

from soft_mm.deployment.runtimes import Session

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='session')
def benchmark(load_module):
    return load_module(ROOT / 'tools/benchmarks/backbones.py')


def test_table_json_and_plot(run_tool, tmp_path):
    done = run_tool(
        'benchmarks/backbones.py',
        '--device',
        'cpu',
        '--sizes',
        '64x96',
        '--only',
        'exact solve',
        'ResNet-50',
        '--turns',
        3,
        '--seconds',
        0,
        '--out',
        tmp_path / 'cpu',
    )
    assert done.stdout == (tmp_path / 'cpu.md').read_text() + '\n'
    results = json.loads((tmp_path / 'cpu.json').read_text())['results']
    assert [(r['case'], r['mode']) for r in results] == [
        (case, mode)
        for mode in ('forward', 'training step')
        for case in ('SOFT-Norm-Tiny, exact solve', 'ResNet-50')
    ]
    assert all(len(r['times']) == 3 and min(r['times']) > 0 < r['memory'] for r in results)
    assert 0 <= results[0]['difference'] < 1e-2
    assert '**64×96, training step**' in done.stdout
    assert (tmp_path / 'cpu.png').stat().st_size > 10000


def test_the_cases_of_a_size_take_turns(benchmark, monkeypatch):
    order = []

    def step_of(name, size, mode, device):
        return lambda: order.append((size, name))

    monkeypatch.setattr(benchmark, 'step_of', step_of)
    monkeypatch.setattr(benchmark, 'milliseconds', lambda step, device: step() or len(order))
    monkeypatch.setattr(benchmark, 'memory_of', lambda result, device: 1.0)
    args = argparse.Namespace(
        only=['ResNet-50', 'Swin-S'],
        sizes=[(64, 96), (96, 96)],
        modes=['forward'],
        device='cpu',
        turns=2,
        seconds=0,
        quiet=True,
    )
    results = benchmark.run_all(args)
    names = ['InLine-Swin-S', 'Swin-S', 'ResNet-50']
    # One run to warm up, then two turns.
    assert order == [(size, name) for size in args.sizes for name in 3 * names]
    assert [r.times for r in results[:3]] == [[4, 7], [5, 8], [6, 9]]
    assert results[0].time_relative_to(results[1]) == (4 / 5 + 7 / 8) / 2


def test_every_twin_and_reference_is_a_case(benchmark):
    for case in benchmark.CASES.values():
        assert {case.twin, case.reference} - {None} <= benchmark.CASES.keys()
        if case.reference:
            reference = benchmark.CASES[case.reference]
            assert reference.backend == 'reference' and reference.twin == case.twin


def test_windows_are_measured_at_224_alone(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, 'measure_times', lambda results, args: None)
    monkeypatch.setattr(benchmark, 'memory_of', lambda result, device: 1.0)
    args = argparse.Namespace(
        only=['windows'], sizes=benchmark.SIZES, modes=['forward'], device='cpu', quiet=True
    )
    results = benchmark.run_all(args)
    assert [r.case for r in results] == [
        f'{name}, windows of {size}'
        for size in (7, 14, 28, 56)
        for name in ('Swin-T', 'InLine-Swin-T')
    ]
    assert {r.size for r in results} == {(224, 224)}


def test_a_way_that_differs_gets_no_time(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, 'AGREE', -1.0)
    args = argparse.Namespace(
        only=['exact solve'],
        sizes=[(64, 96)],
        modes=['forward'],
        device='cpu',
        turns=1,
        seconds=0,
        quiet=True,
    )
    with pytest.raises(SystemExit, match='exact solve at .64, 96.: its maps differ by'):
        benchmark.run_all(args)


def test_exponent_and_ratios(benchmark):
    results = [
        benchmark.Measured(case, (side, side), 'forward', [t * (side / 512) ** power], side**2)
        for case, t, power in (('PVT-Tiny', 100.0, 4), ('SOFT-Norm-Tiny', 50.0, 2))
        for side in (512, 1024)
    ]
    text = benchmark.tables(results)
    assert '| SOFT-Norm-Tiny | PVT-Tiny | 50 | 50–50 | 262144 | 0.50 | 1.00 | – | – |' in text
    assert '| PVT-Tiny | forward | 2.00 | 1.00 |' in text
    assert '| SOFT-Norm-Tiny | forward | 1.00 | 1.00 |' in text


@pytest.mark.parametrize('name', ['backbones', 'ops', 'runtimes'])
def test_the_commands_in_the_docstring_are_valid(name, load_module, monkeypatch):
    module = load_module(ROOT / f'tools/benchmarks/{name}.py')
    commands = re.findall(rf'^    {name}\.py(.*?)(?:   .*)?$', module.__doc__, re.MULTILINE)
    assert len(commands) >= 3
    for options in commands:
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *options.split()])
        module.parse_args()


@pytest.mark.parametrize('size', ['224', '0x5', 'axb'])
def test_bad_sizes(run_tool, size):
    done = run_tool('benchmarks/backbones.py', '--sizes', size, check=False)
    assert done.returncode == 2
    assert f'{size!r} is not of the form 800x1344' in done.stderr


def test_every_way_of_an_op(run_tool, tmp_path, monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    done = run_tool(
        'benchmarks/ops.py',
        '--device',
        'cpu',
        '--sizes',
        '64x96',
        '--stages',
        2,
        '--only',
        'gaussian_product',
        '--out',
        tmp_path / 'cpu',
        fresh=True,
    )
    assert done.stdout == (tmp_path / 'cpu.md').read_text() + '\n'
    results = json.loads((tmp_path / 'cpu.json').read_text())['results']
    assert [(r['mode'], r['way']) for r in results] == [
        (mode, way)
        for mode in ('forward', 'training step')
        for way in ('reference', 'torch.compile', 'torch')
    ]
    for r in results:
        assert r['shape'] == [1, 4, 8 * 12, 2 * 3]
        assert r['difference'] < 1e-5
        assert len(r['times']) >= 3 and 0 < r['of_copy'] < 1 and 0 < r['of_matmul'] < 1
    assert '| gaussian_product | 64×96 | 2 | 1, 4, 96, 6 | forward | reference |' in done.stdout


def test_an_op_that_differs_gets_no_time(load_module, monkeypatch):
    ops = load_module(ROOT / 'tools/benchmarks/ops.py')
    monkeypatch.setitem(ops.AGREE, torch.float32, -1.0)
    with pytest.raises(SystemExit, match="the output of 'reference' differs by 0.0e.00"):
        ops.measure('newton_inverse', ops.Stage.of(0, (64, 96), 1), 'cpu', torch.float32, (1, 1))


NETWORKS = {
    'configs/imagenet/inline-deit-tiny_8xb512-300e_in1k.py': 'agrees with PyTorch to ',
    'tests/tools/bad_input/detector.py': '100 of 100 detections are the same as in PyTorch',
    'tests/tools/bad_input/segmenter.py': '% of the pixels have the same class as in PyTorch',
}


@pytest.mark.long
@pytest.mark.parametrize('config', NETWORKS)
def test_a_network_in_every_runtime(run_tool, tmp_path, config):
    done = run_tool(
        *('benchmarks/runtimes.py', config, '--size', '160x192', '--turns', 3),
        *('--out', tmp_path / 'cpu'),
        *(['--cfg-options', 'model.backbone.depths=(1,)'] if 'deit' in config else []),
    )
    assert done.stdout == (tmp_path / 'cpu.md').read_text() + '\n'
    results = json.loads((tmp_path / 'cpu.json').read_text())['results']
    installed = [name for name in ('onnxruntime', 'openvino') if find_spec(name)]
    assert [r['runtime'] for r in results] == ['pytorch', *installed]
    assert all(len(r['times']) == 3 and min(r['times']) > 0 for r in results)
    assert all(NETWORKS[config] in r['agreement'] for r in results[1:])


@pytest.fixture
def fake_runtimes(load_module, monkeypatch):
    """tools/benchmarks/runtimes.py with a network that returns 1, and a runtime for one that returns x."""

    def load(x: float):
        runtimes = load_module(ROOT / 'tools/benchmarks/runtimes.py')
        session = Session(['image'], ['scores'], None, lambda _: dict(scores=np.array([x])))
        monkeypatch.setattr(runtimes, 'RUNTIMES', dict(onnxruntime=None))
        monkeypatch.setattr(runtimes, 'export', lambda *_: (lambda image: dict(scores=ONE), None))
        monkeypatch.setattr(runtimes, 'open_session', lambda *_: session)
        monkeypatch.setattr('sys.argv', ['runtimes.py', 'a.py', '--size', '8x9', '--turns', '2'])
        return runtimes

    return load


ONE = torch.ones(1, dtype=torch.float64)


def test_runtimes_take_turns(fake_runtimes, monkeypatch, capsys):
    runtimes, times = fake_runtimes(1.0), iter([10, 30, 20, 10])
    monkeypatch.setattr(runtimes, 'milliseconds', lambda step, device: next(times))
    runtimes.main()
    table = capsys.readouterr().out.split('\n\n')[1]
    assert table.splitlines() == [
        '| network | image | PyTorch (ms) | ONNX Runtime (ms) | ONNX Runtime / PyTorch |',
        '|---|---|---|---|---|',
        '| a | 8×9 | 15 | 20 | 1.75 |',
    ]


def test_a_runtime_that_differs_gets_no_time(fake_runtimes):
    with pytest.raises(SystemExit, match='a in ONNX Runtime: scores differs from PyTorch by 1.0e'):
        fake_runtimes(2.0).main()


def test_the_cases_of_the_runtimes_are_configs(load_module):
    for case in load_module(ROOT / 'tools/benchmarks/runtimes.py').CASES.values():
        backbone = Config.fromfile(case.config).model.backbone
        assert 'model.backbone.num_landmarks' not in case.options or backbone.type == 'soft_mm.SOFT'


def test_gpu_writes_results_as_they_come(run_tool, tmp_path):
    out = tmp_path / 'gpu'
    command = '--device', 'cpu', '--quick', '--parts', 'solver', 'acceptance', '--out', out
    run_tool('benchmarks/gpu.py', *command)
    found = json.loads(out.with_suffix('.json').read_text())['results']
    assert {(r['way'], r['m'], r['mode']) for r in found['solver']} == {
        (way, m, mode)
        for way in ('newton_solve', 'newton_solve, torch', '20 iterations')
        for m in (49, 81)
        for mode in ('forward', 'training')
    }
    assert all(0 < r['error'] < 1e-5 and r['ms'] > 0 for r in found['solver'])
    assert found['acceptance'][0]['passed']  # with --quick the tests are collected only
    assert '| 20 iterations | 81 | 2 | forward |' in out.with_suffix('.md').read_text()


def test_gpu_stops_a_part_at_its_limit(load_module, monkeypatch):
    gpu = load_module(ROOT / 'tools/benchmarks/gpu.py')
    monkeypatch.setitem(gpu.LIMITS, 'solver', 0.01)
    monkeypatch.setattr('sys.argv', ['gpu.py', '--device', 'cpu'])
    assert list(gpu.run('solver', gpu.parse_args())) == [dict(error='stopped after 0.01 s')]
    assert sum(load_module(ROOT / 'tools/benchmarks/gpu.py').LIMITS.values()) < 25 * 60
