"""tools/visualization/attention.py: its numbers, its page in a browser, its picture and its errors."""

import base64
import fcntl
import functools
import json
import os
import re
import select
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn

from soft_mm.analysis.attention import AttentionCall, record_attention

ROOT = Path(__file__).parents[2]
TOOL = 'visualization/attention.py'
IMAGENET = 'configs/imagenet'
SOFT = 'tests/tools/bad_input/classifier.py', []
DEIT = f'{IMAGENET}/inline-deit-tiny_8xb512-300e_in1k.py', ['model.backbone.depths=(1,)']
MODELS_SHOWN = {
    'SOFT-Norm': SOFT,
    'InLine-DeiT': DEIT,
    'InLine-PVT': (
        f'{IMAGENET}/inline-pvt-tiny_8xb128-300e_in1k.py',
        ['model.backbone.depths=(1,1,1,1)', 'model.backbone.inline_window_size=20'],
    ),
    'InLine-Swin': (
        f'{IMAGENET}/inline-swin-tiny_8xb128-300e_in1k.py',
        ['model.backbone.arch=small', 'model.backbone.depths=(2,2,2,1)'],
    ),
    'InLine-CSwin': (
        f'{IMAGENET}/inline-cswin-tiny_8xb128-300e_in1k.py',
        ['model.backbone.depths=(1,1,1,1)'],
    ),
}
SEGMENTOR = 'tests/tools/bad_input/segmenter.py'
DETECTOR = 'configs/coco/retinanet_soft-norm-tiny_fpn_1x_coco.py'
TASKS = {
    'classifier': DEIT,
    'detector': (
        DETECTOR,
        [
            'model.backbone.depths=(1,1,1,1)',
            'model.backbone.init_cfg=None',
            'test_dataloader.dataset.pipeline.1.scale=(150,90)',
        ],
    ),
    'segmentor': (SEGMENTOR, []),
}


@pytest.fixture(scope='module')
def tool(load_module):
    return load_module(ROOT / 'tools' / TOOL)


@pytest.fixture(scope='module')
def photograph(shared) -> Path:
    return sorted((shared('data') / 'coco/val2017').glob('*.jpg'))[0]


@pytest.fixture(scope='module')
def shapes(run_tool, tmp_path_factory) -> Path:
    """A generated image."""
    folder = tmp_path_factory.mktemp('shapes') / 'data'
    run_tool('misc/make_shapes.py', folder, '--train', 1, '--val', 0, '--quiet')
    return folder / 'train/000000.png'


@pytest.fixture(scope='module')
def build(parse_options, tmp_path_factory):
    """Build the model of a config with random weights; return config, model and checkpoint."""
    folder = tmp_path_factory.mktemp('weights')

    @functools.cache
    def build(config: str, options: tuple[str, ...]) -> tuple[Config, nn.Module, Path]:
        cfg = Config.fromfile(ROOT / config)
        if options:
            cfg.merge_from_dict(parse_options(list(options)))
        init_default_scope(cfg.default_scope)
        torch.manual_seed(0)
        model = MODELS.build(cfg.model).eval()
        for name, parameter in model.named_parameters():
            if name.endswith(('attn.q.weight', 'attn.qkv.weight')):
                parameter.data *= 20  # initially, the weights of all tokens are nearly the same
        checkpoint = folder / f'{len(list(folder.iterdir()))}.pth'
        torch.save(dict(state_dict=model.state_dict()), checkpoint)
        return cfg, model, checkpoint

    def build_in_scope(config: str, options: list[str]) -> tuple[Config, nn.Module, Path]:
        built = build(config, tuple(options))
        init_default_scope(built[0].default_scope)
        return built

    return build_in_scope


def read(page: Path) -> dict:
    """The data of a page."""
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    return json.loads(text[1])


def decode(text: str, dtype: str, shape: tuple[int, ...]) -> Tensor:
    return torch.tensor(np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)).view(shape)


def expected_rows(call: AttentionCall, queries: list[int]) -> Tensor:
    """The mean of the heads' rows, then those of the heads: ``(1 + h, M, T + N)``."""
    rows = call.rows(torch.tensor(queries))[0]
    return torch.stack([rows.mean(0), *rows])


def averaged(rows: Tensor, hw: tuple[int, int], cell: int) -> Tensor:
    """Mean of every ``cell``×``cell`` tokens: ``(..., H·W)`` -> ``(..., cells)``."""
    maps = rows.unflatten(-1, tuple(hw))
    means = [
        maps[..., y : y + cell, x : x + cell].mean((-2, -1))
        for y in range(0, hw[0], cell)
        for x in range(0, hw[1], cell)
    ]
    return torch.stack(means, -1)


def check_layer(call: AttentionCall, layer: dict) -> None:
    """What the page holds of a layer is its rows and filters."""
    extra, (h, w) = layer['extra'], layer['hw']
    assert (extra, (h, w)) == (call.num_extra, tuple(call.hw))
    ys, xs = layer['ys'], layer['xs']
    if max(h, w) <= 16:
        assert (ys, xs) == (list(range(h)), list(range(w)))
    queries = [*range(extra), *(extra + y * w + x for y in ys for x in xs)]
    rows = expected_rows(call, queries)
    assert len(rows) == 1 + layer['heads']
    shape = rows.shape[:2]
    largest, smallest, total, *classes = decode(
        layer['numbers'], '<f4', (*shape, 3 + extra)
    ).unbind(-1)
    close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5 / (h * w))
    close(largest, rows.amax(-1))
    close(smallest, rows.amin(-1))
    torch.testing.assert_close(total, rows.sum(-1))
    for i, weights in enumerate(classes):
        close(weights, rows[..., i])
    scales = decode(layer['scales'], '<f4', (*shape, 1))
    cells = decode(layer['cells'], 'i1', (*shape, -1))
    assert (cells.abs().amax(-1) == 127).all()
    error = (cells * scales - averaged(rows[..., extra:], (h, w), layer['cell'])).abs()
    assert (error <= 0.501 * scales).all()
    filters = call.filters(torch.tensor(queries))
    assert ('filters' in layer) == (filters is not None)
    if filters is not None:
        side = layer['filter_size']
        heads = filters[0].mean(2).movedim(1, 0)
        held = decode(layer['filters'], '<f4', (*shape, side, side))
        torch.testing.assert_close(held, torch.stack([heads.mean(0), *heads]))


@pytest.mark.parametrize('name', MODELS_SHOWN)
@torch.no_grad()
def test_page(run_tool, tool, build, photograph, tmp_path, name):
    config, options = MODELS_SHOWN[name]
    cfg, model, checkpoint = build(config, options)
    page = tmp_path / 'page.html'
    done = run_tool(
        TOOL, config, checkpoint, photograph, '--out', page, '--layers', 'all',
        *(['--cfg-options', *options] if options else []),
    )  # fmt: skip
    assert f'{page}: ' in done.stdout
    assert page.stat().st_size < 6e6
    assert [path.name for path in tmp_path.iterdir()] == ['page.html']
    (shown,) = read(page)['models']
    picture, inputs = tool.load_image(cfg, model, photograph)
    assert (shown['picture'], shown['size']) == (list(picture.shape[:2]), list(inputs.shape[-2:]))
    jpeg = np.frombuffer(base64.b64decode(shown['image'].split(',')[1]), np.uint8)
    difference = cv2.imdecode(jpeg, cv2.IMREAD_COLOR).astype(float) - picture
    assert np.abs(difference).mean() < 8  # of 64×64 pixels JPEG keeps little
    for call, layer in zip(record_attention(model.backbone, inputs), shown['layers'], strict=True):
        check_layer(call, layer)


@pytest.mark.parametrize('task', TASKS)
def test_the_model_sees_the_image_as_when_it_is_evaluated(
    tool, build, real_images, parse_options, task
):
    config, options = TASKS[task]
    cfg, model, _ = build(config, options)
    cfg = cfg.copy()
    cfg.merge_from_dict(parse_options(real_images(cfg)))
    loader = Runner.build_dataloader({**cfg.test_dataloader, 'batch_size': 1})
    seen = []
    handle = model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        batch = next(iter(loader))
        with torch.no_grad():
            model.test_step(batch)
    finally:
        handle.remove()
    picture, inputs = tool.load_image(cfg, model, Path(batch['data_samples'][0].img_path))
    torch.testing.assert_close(inputs, seen[0], rtol=0, atol=0)
    assert picture.shape[0] <= inputs.shape[2] and picture.shape[1] <= inputs.shape[3]


@pytest.mark.parametrize('head', [None, 2])
@torch.no_grad()
def test_picture(run_tool, tool, build, shapes, tmp_path, head):
    cfg, model, checkpoint = build(*DEIT)
    png = tmp_path / 'query.png'
    run_tool(
        TOOL, DEIT[0], checkpoint, shapes, '--png', png, '--query', 100, 200,
        *(['--head', head] if head else []), '--cfg-options', *DEIT[1],
    )  # fmt: skip
    assert cv2.imread(str(png)).std() > 10
    picture, inputs = tool.load_image(cfg, model, shapes)
    (call,) = calls = record_attention(model.backbone, inputs)
    view = tool.View('DeiT', picture, (224, 224), calls)
    (axis,) = tool.figure([view], (100.5 / 224, 200.5 / 224), head).axes
    row = expected_rows(call, [1 + 100 // 16 * 14 + 200 // 16])[head or 0, 0]
    weights = row[1:].view(14, 14)
    colours = torch.tensor(axis.images[1].get_array())
    torch.testing.assert_close(colours[..., 3].float(), (weights / weights.abs().max()).abs())
    assert ((colours[..., 0] > colours[..., 2]) == (weights >= 0)).all()
    assert f'{row.min():.2g} to {row.max():.2g}, sum 1' in axis.get_title()


def test_a_query_starts_the_page(run_tool, build, shapes, tmp_path):
    page, png = tmp_path / 'page.html', tmp_path / 'query.png'
    run_tool(
        TOOL, SOFT[0], build(*SOFT)[2], shapes, '--compare', SOFT[0], build(*SOFT)[2],
        '--out', page, '--png', png, '--query', 0, 63, '--layers', '1.1', '3.1',
    )  # fmt: skip
    data = read(page)
    assert data['query'] == [0.5 / 64, 63.5 / 64]
    titles = ['stage 1, block 1: SOFTAttention', 'stage 3, block 1: SOFTAttention']
    assert [[layer['title'] for layer in m['layers']] for m in data['models']] == [titles] * 2
    assert png.exists()


def other_backbone(folder: Path) -> str:
    path = folder / 'resnet.py'
    path.write_text(
        f'_base_ = {str(ROOT / SOFT[0])!r}\n'
        "model = dict(backbone=dict(_delete_=True, type='ResNet', depth=18))\n"
    )
    return str(path)


def text_image(folder: Path) -> Path:
    path = folder / 'text.jpg'
    path.write_text('not an image')
    return path


ARGUMENTS = {
    'no output': ([], '--out or --png must name a file to write'),
    'suffix': (['--out', 'page.txt'], "'page.txt' must end in .html"),
    'no folder': (['--png', 'absent/a.png'], "'absent/a.png': there is no folder absent"),
    'layer': (
        ['--out', 'a.html', '--layers', '3'],
        "'3' must be all or STAGE.BLOCK, such as 3.1",
    ),
}


@pytest.mark.parametrize('case', ARGUMENTS)
def test_arguments_are_checked(tool, monkeypatch, capsys, case):
    options, message = ARGUMENTS[case]
    monkeypatch.setattr('sys.argv', ['attention.py', 'config', 'checkpoint', 'image', *options])
    with pytest.raises(SystemExit):
        tool.parse_args()
    assert message in capsys.readouterr().err


# Replaced arguments and further options of the command, and part of its message.
ERRORS = {
    'no config': (dict(config='configs/absent.py'), [], 'configs/absent.py'),
    'base config': (
        dict(config='configs/_base_/models/classifier.py'),
        [],
        'configs/_base_/models/classifier.py has no test_dataloader',
    ),
    'backbone': (
        dict(config=other_backbone),
        [],
        'resnet.py: model.backbone must be one of soft_mm (',
    ),
    'no checkpoint': (dict(checkpoint='absent.pth'), [], 'absent.pth can not be found'),
    'checkpoint': (dict(checkpoint=DEIT), [], 'is not a checkpoint of this model'),
    'no image': (dict(image='absent.jpg'), [], 'there is no image absent.jpg'),
    'image': (dict(image=text_image), [], 'text.jpg is not an image that OpenCV can read'),
    'query': (
        {},
        ['--query', 64, 3],
        '--query must be within the resized image, 64 pixels high and 64 wide, got 64 3',
    ),
    'no layer': (
        {},
        ['--layers', '1.1', '1.2'],
        '--layers must be all or some of 1.1 2.1 3.1 4.1, got 1.2',
    ),
    'head': (
        {},
        ['--head', 2],
        '--head must be from 1 to 1 in stage 1, block 1: SOFTAttention, got 2',
    ),
}


@pytest.mark.parametrize('case', ERRORS)
def test_errors(run_tool, build, shapes, tmp_path, case):
    changed, options, message = ERRORS[case]
    out, work = tmp_path / 'out', tmp_path / 'work'
    out.mkdir()
    work.mkdir()
    paths = []
    for path in (dict(config=SOFT[0], checkpoint=SOFT, image=shapes) | changed).values():
        if callable(path):
            path = path(work)
        paths.append(build(*path)[2] if isinstance(path, tuple) else path)
    files = ['--out', out / 'page.html', '--png', out / 'query.png']
    done = run_tool(TOOL, *paths, *files, *options, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert 'Traceback' not in done.stderr
    assert not list(out.iterdir())


class Browser:
    """Chromium without a window, driven through its DevTools protocol."""

    def __init__(self, program: str, profile: Path) -> None:
        theirs, ours = zip(_pipe(), reversed(_pipe()))
        # Chromium reads commands from descriptor 3 and writes replies to 4.
        command = f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]}'
        options = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage']
        self.process = subprocess.Popen(
            ['bash', '-c', command, 'bash', program, *options, '--remote-debugging-pipe',
             f'--user-data-dir={profile}', 'about:blank'],
            pass_fds=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.input, self.output = ours
        for end in theirs:
            os.close(end)
        self.buffer, self.number, self.events = b'', 0, []
        self.session = {}
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        self.session = dict(sessionId=session)

    def call(self, method: str, **params) -> dict:
        self.number += 1
        message = dict(id=self.number, method=method, params=params, **self.session)
        os.write(self.input, json.dumps(message).encode() + b'\0')
        while (reply := self._receive()).get('id') != self.number:
            self.events.append(reply)
        assert 'error' not in reply, reply
        return reply['result']

    def evaluate(self, expression: str) -> object:
        result = self.call(
            'Runtime.evaluate', expression=expression, awaitPromise=True, returnByValue=True
        )
        assert 'exceptionDetails' not in result, result
        return result['result'].get('value')

    def _receive(self) -> dict:
        while b'\0' not in self.buffer:
            ready, _, _ = select.select([self.output], [], [], 60)
            assert ready, 'Chromium does not answer'
            received = os.read(self.output, 2**16)
            assert received, 'Chromium has ended'
            self.buffer += received
        message, self.buffer = self.buffer.split(b'\0', 1)
        return json.loads(message)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for end in self.input, self.output:
            os.close(end)


def _pipe() -> list[int]:
    """Ends of a pipe, to read and to write, with numbers that leave 3 and 4 free."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high


@pytest.fixture
def browser(tmp_path) -> Iterator[Browser]:
    program = shutil.which('chromium') or shutil.which('google-chrome')
    if program is None:
        pytest.skip('there is no Chromium (Debian: apt-get install chromium)')
    browser = Browser(program, tmp_path / 'profile')
    yield browser
    browser.close()


def click(browser: Browser, selector: str, y: float, x: float) -> None:
    """Click an element of the page at a fraction of its height and width."""
    left, top, width, height = browser.evaluate(
        f"""(() => {{
            const element = document.querySelectorAll({selector!r})[0];
            element.scrollIntoView();
            const box = element.getBoundingClientRect();
            return [box.left, box.top, box.width, box.height];
        }})()"""
    )
    place = dict(x=left + x * width, y=top + y * height, button='left', clickCount=1)
    for kind in 'mousePressed', 'mouseReleased':
        browser.call('Input.dispatchMouseEvent', type=kind, **place)


def shown(browser: Browser, panel: int) -> dict[str, str]:
    """The numbers beside a picture."""
    return dict(
        browser.evaluate(
            f"Array.from(panels[{panel}].dl.querySelectorAll('dt'), "
            'term => [term.textContent, term.nextSibling.textContent])'
        )
    )


def check_shown(browser: Browser, panel: int, call: AttentionCall, head: int, token: int) -> None:
    """The numbers, the row and the colours of a panel are those of a head's row."""
    row = expected_rows(call, [token])[head, 0]
    assert row.std() > 0.02 * row.abs().max()
    numbers = shown(browser, panel)
    for name, value in (
        ('Largest weight', row.max()),
        ('Smallest weight', row.min()),
        ('Sum of weights', row.sum()),
        ('Uniform weight', torch.tensor(1 / len(row))),
    ):
        assert float(numbers[name]) == pytest.approx(value.item(), rel=1e-3, abs=1e-8), name
    if call.num_extra:
        assert float(numbers['Weight of the class token']) == pytest.approx(row[0].item(), rel=1e-3)
    cells = averaged(row[call.num_extra :], call.hw, 1)
    drawn = torch.tensor(browser.evaluate(f'panels[{panel}].row'))
    assert (drawn - cells).abs().max() <= 0.501 * cells.abs().max() / 127
    check_colour(browser, panel, call, drawn)


def check_colour(browser: Browser, panel: int, call: AttentionCall, cells: Tensor) -> None:
    """The cell of the largest magnitude has the full colour of its sign."""
    largest = cells.abs().argmax().item()
    y, x = ((i + 0.5) * call.stride for i in divmod(largest, int(call.hw[1])))
    pixel = browser.evaluate(
        f"""(() => {{
            const {{ canvas, zoom }} = panels[{panel}];
            const context = canvas.getContext('2d');
            return Array.from(context.getImageData({x} * zoom, {y} * zoom, 1, 1).data);
        }})()"""
    )
    assert pixel == [*((178, 24, 43) if cells[largest] > 0 else (33, 102, 172)), 255]


@torch.no_grad()
def test_page_in_a_browser(browser, run_tool, tool, build, shapes, tmp_path):
    """A click, arrow keys and the selectors show the numbers and colours of the chosen row."""
    page, deit = tmp_path / 'page.html', (DEIT[0], [])
    run_tool(
        TOOL, SOFT[0], build(*SOFT)[2], shapes, '--compare', deit[0], build(*deit)[2], '--out', page
    )  # fmt: skip
    for domain in 'Page', 'Network', 'Runtime':
        browser.call(f'{domain}.enable')
    size = dict(width=1200, height=1000, deviceScaleFactor=1, mobile=False)
    browser.call('Emulation.setDeviceMetricsOverride', **size)
    browser.call('Page.navigate', url=page.as_uri())
    browser.evaluate(
        "new Promise(done => document.readyState === 'complete' ? done() : (onload = done))"
        '.then(() => ready)'
    )
    soft, classes = (
        record_attention(model.backbone, tool.load_image(cfg, model, shapes)[1])
        for cfg, model, _ in (build(*SOFT), build(*deit))
    )

    # The middle of 64×64 pixels, token 8 8 of 16×16; the nearest of 14×14 tokens.
    assert shown(browser, 0)['Query'] == 'token 8 8 of 16×16'
    check_shown(browser, 0, soft[0], 0, 8 * 16 + 8)
    before = browser.call('Page.captureScreenshot')['data']

    click(browser, 'canvas', 3.5 / 16, 12.5 / 16)
    assert shown(browser, 0)['Query'] == 'token 3 12 of 16×16'
    assert shown(browser, 0)['Pixel'] == '14 50 of 64×64'
    check_shown(browser, 0, soft[0], 0, 3 * 16 + 12)
    # The same place in the second picture: 3.5 and 12.5 sixteenths are 3.06 and 10.9 fourteenths.
    assert shown(browser, 1)['Query'] == 'token 3 10 of 14×14'
    check_shown(browser, 1, classes[-1], 0, 1 + 3 * 14 + 10)
    after = browser.call('Page.captureScreenshot')['data']
    assert after != before
    image = cv2.imdecode(np.frombuffer(base64.b64decode(after), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (1000, 1200, 3) and image.std() > 10

    for key, place in ('ArrowDown', '4 12'), ('ArrowRight', '4 13'), ('ArrowUp', '3 13'):
        for kind in 'keyDown', 'keyUp':
            browser.call('Input.dispatchKeyEvent', type=kind, key=key)
        assert shown(browser, 0)['Query'] == f'token {place} of 16×16'

    click(browser, '.mean input', 0.5, 0.5)
    weights = torch.tensor(browser.evaluate('panels[0].row'))
    assert (weights - weights.mean()).min() < 0
    check_colour(browser, 0, soft[0], weights - weights.mean())

    for name, value in ('layer', 0), ('head', 2):
        browser.evaluate(
            f"panels[1].{name}.value = {value}; panels[1].{name}.dispatchEvent(new Event('change'))"
        )
    check_shown(browser, 1, classes[-1], 2, 1 + 3 * 14 + 11)
    click(browser, 'section:nth-of-type(2) .extra input', 0.5, 0.5)
    assert shown(browser, 1)['Query'] == 'class token'
    check_shown(browser, 1, classes[-1], 2, 0)
    filters = browser.evaluate(
        "Array.from(panels[0].table.querySelectorAll('td'), item => Number(item.textContent))"
    )
    expected = soft[0].layer.dwconv.weight.mean(0).flatten()
    torch.testing.assert_close(torch.tensor(filters), expected, rtol=0, atol=0.00051)

    # With nothing fetched, and no error.
    requests = [
        event['params']['request']['url']
        for event in browser.events
        if event['method'] == 'Network.requestWillBeSent'
    ]
    assert requests[0] == page.as_uri()
    assert all(url.startswith('data:') for url in requests[1:])
    assert 'Runtime.exceptionThrown' not in {event['method'] for event in browser.events}
