"""What the figures show follows from the formulas, and the command writes it."""

import argparse
import json
from pathlib import Path
from unittest.mock import MagicMock

import cv2
import numpy as np
import pytest
import torch

from soft_mm.ops.gaussian_kernel.reference import gaussian_kernel
from soft_mm.ops.newton_inverse import newton_inverse
from soft_mm.ops.nystrom_attention.scale import newton_start

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='session')
def figures(load_module):
    return load_module(ROOT / 'tools/analysis_tools/figures.py')


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with two images of smooth noise."""
    folder = tmp_path / 'images'
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        noise = cv2.resize(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8), (160, 120))
        assert cv2.imwrite(str(folder / f'{i}.png'), noise)
    return folder


def test_newton_converges_to_what_one_pole_computes(figures):
    """On kernels of random landmarks, of which 20 iterations invert SOFT's and damp SOFT-Norm's."""
    generator = torch.Generator().manual_seed(0)
    landmarks = 0.5 * torch.randn(2, 3, 40, 8, generator=generator, dtype=torch.float64)
    k2 = gaussian_kernel(landmarks, landmarks)
    for sym_norm in (False, True):
        p, alpha = newton_start(k2, k2.sum(-1, keepdim=True), sym_norm, 'matrix')
        errors, one_pole = figures.inverse_errors(p, alpha)
        assert len(errors) == 21 and all(b < a for a, b in zip(errors, errors[1:]))
        assert errors[20] < 0.05 < 0.2 < errors[0]
        v = newton_inverse(p, alpha, backend='standard')
        wrong = torch.linalg.matrix_norm(p @ v @ p - p, 2) / torch.linalg.matrix_norm(p, 2)
        assert errors[20] == pytest.approx(wrong.mean().item(), rel=1e-6)
        # The relative error of the polynomial, see soft_mm/ops/newton_solve, and errors are below 1.
        assert one_pole == pytest.approx(errors[20], abs=3e-6)


@pytest.mark.parametrize('affine', [False, True])
def test_linear_attention_confuses_the_papers_four_queries(figures, affine):
    rows = figures.four_queries(affine)
    for weights in rows.values():
        torch.testing.assert_close(weights.sum(-1), torch.ones(4), rtol=0, atol=1e-5)
    distances = {name: figures.row_distances(weights[None, None]) for name, weights in rows.items()}
    # Their sums of weights, which are at least 0.1, differ by EPS alone.
    assert distances['linear'].max() < 1e-4
    assert distances['InLine'].min() > 0.05 and distances['softmax'].min() > 0.05


def test_local_share(figures):
    queries = torch.tensor([[0, 0], [3, 2], [5, 7]])
    uniform = torch.ones(2, 3, 6, 8)
    for side, counts in ((3, [4, 9, 4]), (5, [9, 25, 9]), (7, [16, 36, 16]), (17, [48, 48, 48])):
        shares = figures.local_share(uniform, queries, side)
        torch.testing.assert_close(shares, torch.tensor(counts).expand(2, 3) / 48)
    signed = torch.zeros(1, 6, 8)
    signed[0, 3, 2], signed[0, 0, 7] = -3.0, 1.0
    assert figures.local_share(signed, queries[1:2], 3).item() == 0.75


def test_filters_are_added_around_each_query(figures):
    queries = torch.tensor([[0, 0], [3, 2]])
    filters = torch.arange(2 * 2 * 9.0).view(1, 2, 1, 2, 3, 3)  # B, M, h, c, k, k
    weights = figures.with_filters(torch.zeros(1, 1, 2, 6, 8), filters, queries)
    assert weights.shape == (1, 1, 2, 2, 6, 8)
    for channel in range(2):
        torch.testing.assert_close(weights[0, 0, channel, 1, 2:5, 1:4], filters[0, 1, 0, channel])
        corner = filters[0, 0, 0, channel, 1:, 1:]
        torch.testing.assert_close(weights[0, 0, channel, 0, :2, :2], corner)
    inside = figures.near(queries, (6, 8), 3)
    assert not weights[..., ~inside].any()


def test_materialised_softmax_takes_memory_with_the_square_of_the_tokens(figures, monkeypatch):
    for name, value in (('DIMS', 48), ('DEPTH', 2)):
        monkeypatch.setattr(figures, name, value)
    monkeypatch.setattr(figures, 'CDLL', MagicMock())  # it would slow down all other tests
    args = argparse.Namespace(device='cpu', lengths=[784, 1568])
    _, (panel,) = figures.memory(args)
    peaks = {curve.label: curve.y for curve in panel.curves}
    assert len(peaks) == 6
    # The weights of 2 layers with 12 heads, in MiB; all others keep less than a tenth of them.
    weights = 2 * 12 * 1568**2 * 4 / 2**20
    assert all((peak[1] > weights) == ('materialised' in name) for name, peak in peaks.items())


def test_figures_of_images(run_tool, images, tmp_path):
    out = tmp_path / 'figures'
    command = 'convergence', 'injectivity', 'locality', '--images', images, '--sides', 64
    run_tool('analysis_tools/figures.py', *command, '--out', out)
    found = {path.stem: json.loads(path.read_text()) for path in out.glob('*.json')}
    assert set(found) == {path.stem for path in out.glob('*.png')} == set(command[:3])
    assert found['locality']['conditions'] == 'images 0.png, 1.png; weights random'

    stages = [panel['curves'] for panel in found['convergence']['panels']]
    assert [len(curves) for curves in stages] == [6, 6]  # iterations and one pole, three stages

    *_, on_images = found['injectivity']['panels']
    assert on_images['title'] == 'softmax, queries of InLine-PVT'
    for curve in on_images['curves']:
        assert curve['y'] == sorted(curve['y']) and curve['y'][-1] == 1

    shares = {c['label']: c['y'] for c in found['locality']['panels'][0]['curves']}
    convolved = shares['inline-pvt with its convolution']
    assert all(a < b < 1 for a, b in zip(shares['inline-pvt'], convolved))


def test_speed_is_read_from_the_benchmark(run_tool, tmp_path):
    sizes = 7, 14, 28, 56
    twins = ('DeiT-T', 40), ('Swin-T', 30), ('PVT-Tiny', 20)
    ours = [(f'InLine-{name}', 10) for name, _ in twins]
    times = {
        (name, side): (time, 3 * time)
        for name, time in (*twins, *ours, ('SOFT-Norm-Tiny', 5))
        for side in (512, 224)
    }
    for name, factor in ('Swin-T', 2), ('InLine-Swin-T', 1):
        for size in sizes:
            turns = (size * factor, 2 * size * factor, 9 * size * factor)
            times[f'{name}, windows of {size}', 224] = turns
    results = [
        dict(case=case, size=[side, side], mode='forward', times=turns)
        for (case, side), turns in times.items()
    ]
    benchmark = json.dumps(dict(machine='a machine', results=results))
    (tmp_path / 'backbones_cpu.json').write_text(benchmark)
    command = (
        'windows',
        'resolution',
        '--device',
        'cpu',
        '--benchmarks',
        tmp_path,
        '--out',
        tmp_path,
    )
    run_tool('analysis_tools/figures.py', *command)
    found = {name: json.loads((tmp_path / f'{name}.json').read_text()) for name in command[:2]}
    assert found['windows']['conditions'] == 'a machine'
    curves = {c['label']: c for (p,) in [found['windows']['panels']] for c in p['curves']}
    assert curves['Swin-T']['y'] == curves['InLine-Swin-T']['y'] == [7 / size for size in sizes]
    assert curves['Swin-T, paper']['y'] == [x / 989 for x in (989, 842, 530, 287)]
    curves = {c['label']: c for (p,) in [found['resolution']['panels']] for c in p['curves']}
    assert curves['DeiT-T / InLine-DeiT-T']['x'] == [224, 512]
    assert curves['DeiT-T / InLine-DeiT-T']['y'] == [4, 4]
    assert curves['PVT-Tiny / SOFT-Norm-Tiny']['y'] == [4, 4]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['locality'], 'locality: --images must name images or a folder of them'),
        (['locality', '--images', 'none'], "'none' must be an image"),
        (['memory', '--lengths', '100'], "'100' must be a multiple of 28, at least 56"),
        (
            ['locality', '--images', 'docs', '--study', 'none'],
            'no checkpoint in none/soft-softmax/seed-0',
        ),
        (['windows', '--device', 'cpu', '--benchmarks', 'none'], 'none/backbones_cpu.json'),
    ],
)
def test_bad_arguments(run_tool, tmp_path, arguments, message):
    done = run_tool('analysis_tools/figures.py', *arguments, '--out', tmp_path, check=False)
    assert done.returncode and message in done.stderr
    assert not list(tmp_path.iterdir())
