"""Which backend an op uses, and what it says when it cannot use it."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from soft_mm.ops import backend as backends
from soft_mm.ops import dynamic_conv, gaussian_kernel, gaussian_product, set_backend
from soft_mm.ops.backend import choose_backend
from soft_mm.ops.extension import missing

CPU, CUDA = torch.device('cpu'), torch.device('cuda')


@pytest.fixture
def logged(logged, monkeypatch) -> list[str]:
    """Messages of MMEngine's logger, as if no op had logged one before."""
    monkeypatch.setattr(backends, '_logged', set())
    return logged


def test_the_argument_precedes_the_context_and_the_context_the_default():
    assert choose_backend(None, CPU) == 'torch'
    assert choose_backend(None, CPU, 'extension') == 'extension'
    assert choose_backend(None, CUDA) == ('triton' if backends.HAS_TRITON else 'torch')
    with set_backend('reference'):
        assert choose_backend(None, CUDA) == 'reference'
        assert choose_backend('standard', CPU) == 'standard'
        with set_backend(None):
            assert choose_backend(None, CPU) == 'torch'
        assert choose_backend(None, CPU) == 'reference'
    assert choose_backend(None, CPU) == 'torch'


def test_a_context_that_fails_restores_the_backend():
    with pytest.raises(ZeroDivisionError), set_backend('reference'):
        _ = 1 / 0
    assert choose_backend(None, CPU) == 'torch'


def test_unknown_backends_are_refused(monkeypatch):
    message = r"one of \['torch', 'triton', 'extension', 'reference', 'standard'\], got 'fast'"
    with pytest.raises(ValueError, match=message), set_backend('fast'):
        pass
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match=message):
        gaussian_kernel(x, x, backend='fast')
    monkeypatch.setattr(backends, '_selected', 'fast')  # as the environment may
    with pytest.raises(ValueError, match='SOFT_MM_BACKEND.*' + message):
        gaussian_kernel(x, x)


def test_triton_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(backends, 'INTERPRETED', False)
    monkeypatch.setattr(backends, 'HAS_TRITON', True)
    with pytest.raises(ValueError, match="backend 'triton' needs tensors on a GPU, got cpu"):
        choose_backend('triton', CPU)
    monkeypatch.setattr(backends, 'HAS_TRITON', False)
    with pytest.raises(ValueError, match='needs the package triton and torch 2.8'):
        choose_backend('triton', CUDA)


@pytest.mark.parametrize(('old', 'new'), [('reference', 'reference'), ('cuda', 'extension')])
def test_the_old_variable_works_with_one_warning(old, new):
    code = (
        'import torch; from soft_mm.ops.backend import choose_backend; '
        'print(choose_backend(None, torch.device("cpu")))'
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        env={**backends.os.environ, 'SOFT_MM_KERNEL': old},
    )
    assert done.stdout == f'{new}\n'
    assert done.stderr.count('FutureWarning') == 1
    assert f'SOFT_MM_KERNEL is deprecated: set SOFT_MM_BACKEND={new} instead' in done.stderr


def test_widths_that_triton_does_not_take_are_logged_once(logged, monkeypatch):
    if not backends.HAS_TRITON:
        pytest.skip('there is no Triton, or one before 3.4')
    monkeypatch.setattr(backends, 'INTERPRETED', True)
    q = torch.ones(1, 5, 65)
    for _ in range(2):
        out = gaussian_product(q, q, q, backend='triton')
        assert out.equal(gaussian_product(q, q, q, backend='torch'))
    (message,) = logged
    assert "gaussian_product: backend 'triton' does not support this call" in message
    assert '(1, 5, 65) of torch.float32' in message


def test_an_old_gpu_is_logged_once(logged, monkeypatch):
    old = type('Properties', (), dict(name='Tesla V100', major=7))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: old)
    assert not backends.runs_triton('newton_inverse', CUDA)
    assert not backends.runs_triton('newton_inverse', CUDA)
    assert logged == [
        "newton_inverse: backend 'triton' does not support this call "
        "(Tesla V100 is older than sm_80); using 'torch'"
    ]


def test_a_convolution_that_the_extension_cannot_do_is_logged(logged, monkeypatch):
    if missing():
        pytest.skip(missing())
    with torch.device('meta'):
        v, filters = torch.ones(1, 6, 2), torch.ones(1, 2, 3, 3)
    dynamic_conv(v, filters, (2, 3), backend='extension')
    (message,) = logged
    assert "dynamic_conv: backend 'extension' does not support this call" in message
    assert 'not on meta' in message


def test_compilation_is_no_export():
    def offset(x: Tensor) -> Tensor:
        return x + (1 if choose_backend(None, x.device) == 'standard' else 0)

    x = torch.zeros(2)
    assert torch.equal(torch.compile(offset, fullgraph=True, backend='eager')(x), x)


@pytest.mark.skipif(torch.__version__ < (2, 7), reason='torch.export is too young')
@pytest.mark.parametrize('strict', [False, True])
def test_export_takes_standard_operators(strict):
    class Offset(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + (1 if choose_backend(None, x.device) == 'standard' else 0)

    x = torch.zeros(2)
    program = torch.export.export(Offset(), (x,), strict=strict)
    assert torch.equal(program.module()(x), torch.ones(2))
