"""The code of docs/swap_in_pytorch.md runs, and trains the backbone."""

import re
from pathlib import Path

import pytest
import torch

import soft_mm

PAGE = Path(__file__).parents[2] / 'docs/swap_in_pytorch.md'


def test_the_code_of_the_page(tmp_path, monkeypatch, capsys):
    pytest.importorskip('torchvision', reason='torchvision is not installed')
    torch.manual_seed(0)
    pretrained = soft_mm.SOFT('tiny', sym_norm=True).state_dict()
    (tmp_path / 'checkpoints').mkdir()
    torch.save(pretrained, tmp_path / 'checkpoints/soft-norm-tiny.pth')
    monkeypatch.chdir(tmp_path)
    code = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.DOTALL)
    assert len(code) == 4
    page = {}
    exec('\n'.join(code), page)

    names, *maps = capsys.readouterr().out.splitlines()
    assert eval(names) == [f'inline-pvt-{size}' for size in ('tiny', 'small', 'medium', 'large')]
    assert maps[0] == '(1, 64, 32, 40) 64 4'
    assert maps[3] == '(1, 512, 4, 5) 512 32'
    losses = {'loss_classifier', 'loss_box_reg', 'loss_objectness', 'loss_rpn_box_reg'}
    assert page['losses'].keys() == losses
    assert all(loss.isfinite() for loss in page['losses'].values())
    for name, parameter in page['backbone'].named_parameters():
        torch.testing.assert_close(parameter, pretrained[name], rtol=0, atol=0)
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name
    for prediction in page['predictions']:
        assert prediction['boxes'].shape == (*prediction['labels'].shape, 4)
        assert prediction['scores'].isfinite().all()
