"""Readers and converters of checkpoints take any file: they load it or say what is wrong with it."""

import io
import pickle
import pickletools
import re
import runpy
import sys
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import Tensor, nn

import soft_mm
from soft_mm.fileio import last_checkpoint, load_backbone, set_checkpoint_reader
from soft_mm.fileio.checkpoints import checkpoint_of_this_model

from .damage import damaged

ROOT = Path(__file__).parents[2]
ARCH = dict(channels=(8, 8, 8, 16), num_heads=(1, 1, 1, 2), depths=(1, 1, 1, 1))
BACKBONES = {
    'SOFT': lambda **options: soft_mm.SOFT(
        dict(ARCH, kernel_sizes=(9, 5, 3)), sym_norm=True, img_size=32, **options
    ),
    'InLineDeiT': lambda **options: soft_mm.InLineDeiT(
        dict(channels=(8,), num_heads=(1,), depths=(1,)), img_size=32, **options
    ),
    'InLinePVT': lambda **options: soft_mm.InLinePVT(
        dict(ARCH, mlp_ratios=(2, 2, 2, 2)), img_size=32, **options
    ),
    'InLineSwin': lambda **options: soft_mm.InLineSwin(
        dict(ARCH, inline_depths=(1, 0, 0, 0)), img_size=32, window_size=1, **options
    ),
}
# Patterns of our names and what the authors call it, the inverse of the converters' tables.
BLOCKS = (r'^stages\.(\d)\.blocks', lambda m: f'block{int(m[1]) + 1}')
POSITIONS = (r'^stages\.(\d)\.pos_embed.weight', lambda m: f'pos_embed{int(m[1]) + 1}')
RESIDUAL = (r'attn\.filters', 'attn.residual')
THEIRS = {
    'SOFT': [
        (r'^stages\.(\d)\.patch_embed', lambda m: f'patch_embed{int(m[1]) + 1}.proj'),
        BLOCKS,
        POSITIONS,
        (r'^(block[123]\.0\.)attn\.([qv]\.)', r'\1att.mha.W_\2'),
        (r'^(block[123]\.0\.)attn\.landmarks\.conv', r'\1att.mha.attn.Qlandmark_op'),
        (r'^(block[123]\.0\.)attn\.landmarks\.norm', r'\1att.mha.attn.Qnorm_act.0'),
        (r'^(block[123]\.0\.)attn\.dwconv', r'\1att.mha.attn.conv'),
        (r'^(block[123]\.0\.)attn\.proj', r'\1att.mha.ff'),
        (r'^(block[123]\.0\.)norm', r'\1att.norm'),
        (r'^(block[123]\.0\.)mlp\.fc', r'\1att.ff'),
        (r'^stages\.3\.', ''),
    ],
    'InLineDeiT': [(r'^stages\.0\.pos_embed.weight', 'pos_embed'), RESIDUAL, (r'^stages\.0\.', '')],
    'InLinePVT': [
        (r'^stages\.(\d)\.patch_embed', lambda m: f'patch_embed{int(m[1]) + 1}'),
        BLOCKS,
        POSITIONS,
        RESIDUAL,
        (r'^stages\.3\.', ''),
    ],
    'InLineSwin': [
        (r'^stages\.0\.patch_embed', 'patch_embed'),
        (r'^stages\.(\d)\.patch_embed', lambda m: f'layers.{int(m[1]) - 1}.downsample'),
        (r'^stages\.(\d)\.blocks', r'layers.\1.blocks'),
        RESIDUAL,
        (r'relative_position_bias\.weight', 'relative_position_bias_table'),
        (r'^stages\.3\.', ''),
    ],
}


@cache
def authors_state(family: str) -> dict[str, Tensor]:
    """A state dict of a small classifier of two classes with the names of its authors."""
    ours = BACKBONES[family](out_type='avg_featmap').state_dict()
    channels = BACKBONES[family]().out_channels[-1]
    state = {'head.weight': torch.ones(2, channels), 'head.bias': torch.ones(2)}
    classes = [tensor for name, tensor in ours.items() if name.endswith('.cls_pos_embed')]
    for name, tensor in ours.items():
        if name.endswith('.cls_pos_embed'):
            continue
        for pattern, replacement in THEIRS[family]:
            name = re.sub(pattern, replacement, name)
        if name.startswith('pos_embed'):
            tensor = tensor.flatten(2).mT
            last = name in ('pos_embed', 'pos_embed4')
            state[name] = torch.cat((*classes, tensor), 1) if last else tensor
        elif name.endswith('bias_table'):
            state[name] = tensor[0].flatten(1).mT
        elif '.qkv.' in name:
            state[name.replace('qkv', 'q')], state[name.replace('qkv', 'kv')] = tensor.split(
                [len(tensor) // 3, len(tensor) // 3 * 2]
            )
        else:
            state[name] = tensor
    return state


@cache
def checkpoint(legacy: bool) -> bytes:
    """A small checkpoint as MMEngine's runner writes it, with records of the run."""
    history = HistoryBuffer([0.5, 0.25], [1, 1])
    return saved(
        dict(
            meta=dict(epoch=1, dataset_meta=dict(classes=('cat', 'dog'))),
            state_dict=small().state_dict(),
            message_hub=dict(log_scalars=dict(loss=history), runtime_info=dict(x=np.float64(2))),
            optimizer=dict(state={0: dict(step=torch.tensor(1.0))}, param_groups=[dict(lr=0.1)]),
        ),
        legacy,
    )


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def saved(content: object, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


@pytest.fixture(scope='module')
def reader():
    """MMEngine reads checkpoints with our reader, as in tools/train.py, until the module is done."""
    schemes = CheckpointLoader._schemes.copy()
    logger = MMLogger.get_current_instance()
    level = logger.level
    with pytest.MonkeyPatch.context() as patch, torch.serialization.safe_globals([]):
        patch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
        set_checkpoint_reader(trust_pickle=False)
        yield
    CheckpointLoader._schemes = schemes
    logger.setLevel(level)  # which the converters' --quiet has changed


@pytest.fixture(scope='module')
def read(reader, without_effects, little_memory):
    """Let every reader read a file, check what it does, and return those that could."""

    def run(content: bytes, model: nn.Module | None = None) -> set[str]:
        model = small() if model is None else model
        done = set()
        with TemporaryDirectory() as folder, little_memory():
            file = Path(folder, 'epoch_1.pth')
            file.write_bytes(content)
            with without_effects(), redirect_stdout(io.StringIO()):
                last_checkpoint(Path(folder))
            for load in load_backbone, load_strictly:
                with without_effects():
                    if loads(load, model, file):
                        done.add(load.__name__)
            for script in 'soft_to_mm.py', 'inline_to_mm.py':
                if converts(script, file, ['--ema'] if b'state_dict_ema' in content else []):
                    done.add(script)
            assert file.read_bytes() == content
        return done

    return run


def load_strictly(model: nn.Module, file: Path) -> None:
    """Load a checkpoint as MMEngine's runner and the tools do."""
    with checkpoint_of_this_model(str(file)):
        load_checkpoint(model, str(file), 'cpu', strict=True, logger='silent')


def loads(load: Callable, model: nn.Module, file: Path) -> bool:
    """Load a checkpoint, or get an error of the documented kinds that names the file."""
    try:
        load(model, file)
    except (ValueError, OSError) as error:
        assert str(file) in str(error), repr(error)
        assert len(str(error)) < 20_000
        return False
    return True


def converts(name: str, file: Path, options: list[str]) -> bool:
    """Convert a checkpoint into a file of weights, or get an error that names it and no file."""
    target, errors = file.with_name('ours.pth'), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(errors):
        patch.setattr(sys, 'argv', ['', str(file), str(target), '--quiet', *options])
        try:
            runpy.run_path(str(ROOT / 'tools/model_converters' / name), run_name='__main__')
        except SystemExit as end:
            assert end.code == 1
            assert f'{name}: error: {file}: ' in errors.getvalue()
            assert len(errors.getvalue()) < 20_000
            assert [path.name for path in file.parent.iterdir()] == [file.name]
            return False
    state = torch.load(target, weights_only=True)['state_dict']
    target.unlink()
    for key, tensor in state.items():
        assert tensor.is_floating_point() or key.endswith('num_batches_tracked')
        assert not tensor.is_meta
    return True


@pytest.mark.parametrize('family', BACKBONES)
def test_whole_states_are_read(read, family):
    ours, theirs = BACKBONES[family](), authors_state(family)
    readers = {'load_backbone', 'load_strictly'}
    assert read(saved(dict(state_dict=ours.state_dict())), ours) == readers
    converter = 'soft_to_mm.py' if family == 'SOFT' else 'inline_to_mm.py'
    assert read(saved(dict(state_dict=theirs), legacy=True)) == {converter}


@pytest.mark.parametrize('legacy', [False, True])
def test_a_whole_checkpoint_is_read(read, legacy):
    assert read(checkpoint(legacy)) == {'load_backbone', 'load_strictly'}


def test_code_that_runs_is_seen(effects, tmp_path):
    pickle.loads(pickled(Call(('posix', 'mkdir'), (str(tmp_path / 'mark'),))) + b'.')
    assert effects[-1].startswith('os.mkdir')


class Call(NamedTuple):
    """A call in a pickle, and the state that the result gets."""

    function: tuple[str, str]  # module and name
    args: tuple = ()
    state: object = None


class Storage(NamedTuple):
    """A reference to the only storage of an archive."""

    kind: str
    length: int


def pickled(value: object) -> bytes:
    """Pickle a value without looking at what its calls are."""
    if isinstance(value, Call):
        module, name = value.function
        code = b'c%s\n%s\n' % (module.encode(), name.encode()) + pickled(tuple(value.args)) + b'R'
        return code if value.state is None else code + pickled(value.state) + b'b'
    if isinstance(value, Storage):
        kind = b'ctorch\n%s\n' % value.kind.encode()
        key, place = pickled('0'), pickled('cpu')
        return b'(%btQ' % b''.join((pickled('storage'), kind, key, place, pickled(value.length)))
    if isinstance(value, tuple):
        return b'(%st' % b''.join(map(pickled, value))
    if isinstance(value, list):
        return b'](%se' % b''.join(map(pickled, value))
    if isinstance(value, dict):
        return b'}(%su' % b''.join(pickled(k) + pickled(v) for k, v in value.items())
    return pickle.dumps(value, 2)[2:-1]


def archive(stream: bytes) -> bytes:
    """A checkpoint in the zip format with a pickle and a storage of 64 bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as entries:
        for name, content in {
            'data.pkl': stream,
            'byteorder': b'little',
            'data/0': bytes(64),
            'version': b'3\n',
        }.items():
            entries.writestr(f'archive/{name}', content)
    return file.getvalue()


def opcodes(stream: bytes) -> list[int]:
    """Where the operations of consecutive pickles begin."""
    file, places = io.BytesIO(stream), []
    try:
        while file.tell() < len(stream):
            start = file.tell()
            places += [place for _, _, place in pickletools.genops(file)]
    except ValueError:  # the storages of the legacy format follow its pickles
        places.append(start)
    return sorted({*places, len(stream)})


FILES = st.sampled_from((False, True)).map(checkpoint)


@given(FILES.flatmap(damaged))
@example(checkpoint(legacy=False)[1:])
@example(checkpoint(legacy=False)[:4] + checkpoint(legacy=False)[600:])
def test_damaged_bytes(read, content):
    read(content)


@st.composite
def repacked(draw: st.DrawFn) -> bytes:
    """An archive with changes within its entries, and checksums that fit them."""
    result = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(checkpoint(legacy=False))) as before,
        zipfile.ZipFile(result, 'w') as after,
    ):
        spoilt = draw(st.sampled_from(before.namelist()))
        for name in before.namelist():
            entry = before.read(name)
            after.writestr(name, draw(damaged(entry)) if name == spoilt else entry)
    return result.getvalue()


@given(repacked())
def test_damaged_entries(read, content):
    read(content)


@st.composite
def reordered(draw: st.DrawFn) -> bytes:
    """A checkpoint whose pickle consists of whole operations, but of others or in another order."""
    if draw(st.booleans()):
        whole = checkpoint(legacy=True)
        return draw(damaged(whole, opcodes(whole)))
    with zipfile.ZipFile(io.BytesIO(checkpoint(legacy=False))) as file:
        stream = next(file.read(name) for name in file.namelist() if name.endswith('data.pkl'))
    return archive(draw(damaged(stream, opcodes(stream))))


@given(reordered())
def test_other_operations(read, content):
    read(content)


ALLOWED = [
    ('builtins', 'getattr'),
    ('builtins', 'set'),
    ('builtins', 'complex'),
    ('_codecs', 'encode'),
    ('collections', 'OrderedDict'),
    ('collections', 'Counter'),
    ('argparse', 'Namespace'),
    ('yacs.config', 'CfgNode'),
    ('mmengine.logging.history_buffer', 'HistoryBuffer'),
    ('numpy', 'ndarray'),
    ('numpy', 'dtype'),
    ('numpy.core.multiarray', '_reconstruct'),
    ('numpy._core.multiarray', 'scalar'),
    ('numpy.dtypes', 'Float64DType'),
    ('torch', 'device'),
    ('torch', 'Size'),
    ('torch', 'Tensor'),
    ('torch', 'FloatStorage'),
    ('torch.nn.parameter', 'Parameter'),
    ('torch._tensor', '_rebuild_from_type_v2'),
    *(
        ('torch._utils', f'_rebuild_{name}')
        for name in (
            'tensor',
            'tensor_v2',
            'tensor_v3',
            'parameter',
            'parameter_with_state',
            'qtensor',
            'sparse_tensor',
            'meta_tensor_no_storage',
            'nested_tensor',
            'wrapper_subclass',
            'device_tensor_from_numpy',
            'device_tensor_from_cpu_tensor',
        )
    ),
]
# What would run code, write or delete.
HOSTILE = [
    ('os', 'system'),
    ('os', 'mkdir'),
    ('posix', 'mkdir'),
    ('builtins', 'eval'),
    ('builtins', 'exec'),
    ('builtins', '__import__'),
    ('subprocess', 'Popen'),
    ('subprocess', 'call'),
    ('operator', 'methodcaller'),
    ('functools', 'partial'),
    ('importlib', 'import_module'),
    ('runpy', 'run_path'),
    ('pickle', 'loads'),
    ('torch', 'load'),
    ('torch.hub', 'load'),
    ('torch.jit', 'load'),
    ('torch.storage', '_load_from_bytes'),
    ('torch.serialization', 'load'),
    ('numpy', 'load'),
    ('shutil', 'rmtree'),
    ('mmengine.config', 'Config'),
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from((0, 1, 2, 3, 4, 8, 16, -1, 2**31, 2**63 - 1, 2**63, 10**12, 10**40)),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=8),
    st.sampled_from(('cpu', 'cuda:0', 'meta', 'float64', 'O', 'V8', 'f8', '<', 'utf-8', 'mean')),
    st.sampled_from(('mkdir mark', "__import__('os').mkdir('mark')", 'mark', 'os', '__globals__')),
    st.builds(
        Storage,
        st.sampled_from(('FloatStorage', 'UntypedStorage', 'QInt8Storage', 'ComplexFloatStorage')),
        st.sampled_from((0, 1, 4, 8, 16, 64, -1, 2**61, 2**63 - 1)),
    ),
)
FUNCTIONS = st.sampled_from(ALLOWED + HOSTILE)


def references(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(
        st.lists(values, max_size=4),
        st.lists(values, max_size=4).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers(0, 9)), values, max_size=3),
        st.builds(Call, FUNCTIONS, st.lists(values, max_size=6).map(tuple), st.none() | values),
    )


@given(st.recursive(SCALARS, references, max_leaves=20), st.booleans())
@example({5: {}}, False)
def test_calls(read, value, in_meta):
    content = {'state_dict': {}, 'meta': value} if in_meta else value
    read(archive(b'\x80\x02' + pickled(content) + b'.'))


def hooked(tensor: Tensor) -> Tensor:
    tensor = nn.Parameter(tensor.float())
    tensor.register_hook(print)
    return tensor


def containing_itself(state: dict) -> dict:
    content = dict(state)
    content['state_dict'] = content
    return content


# What a tensor of a state dict may become.
TENSORS = {
    'of no dimension': lambda t: torch.ones(()),
    'of another dimension': lambda t: t[None],
    'of one dimension': lambda t: t.flatten(),
    'of five dimensions': lambda t: torch.ones(1, 2, 1, 1, 3),
    'transposed': lambda t: t.T if t.ndim == 2 else t.movedim(0, -1) if t.ndim else t,
    'cut': lambda t: t[:-1] if t.ndim else t,
    'twice': lambda t: torch.cat((t, t)) if t.ndim else t,
    'empty': lambda t: t[:0] if t.ndim else torch.ones(0),
    'empty in the last dimension': lambda t: t[..., :0] if t.ndim else torch.ones(0),
    'empty and long': lambda t: torch.ones([10**4] * (t.ndim - 1) + [0]),
    'overlapping': lambda t: torch.ones(()).expand(2**40, *t.shape),
    'without data': lambda t: t.to('meta'),
    'of halves': lambda t: t.half(),
    'of doubles': lambda t: t.double(),
    'of eight bits': lambda t: t.to(torch.float8_e4m3fn),
    'of integers': lambda t: t.int(),
    'of booleans': lambda t: t.bool(),
    'of complex numbers': lambda t: t.to(torch.complex64),
    'quantised': lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    'sparse': lambda t: t.to_sparse(),
    'in sparse rows': lambda t: torch.ones(3, 3).to_sparse_csr(),
    'not a number': lambda t: t * float('nan'),
    'infinite': lambda t: t.double() * float('inf'),
    'a parameter': lambda t: nn.Parameter(t.float()),
    'a parameter with a hook': hooked,
    'a list': lambda t: t.tolist(),
    'a dict': lambda t: dict(weight=t),
    'None': lambda t: None,
    'an array': lambda t: t.numpy(),
}
NAMES = st.sampled_from(
    (
        'head.bias',
        'extra',
        '',
        7,
        None,
        ('norm', 'bias'),
        'block1.999999999.norm1.weight',
        'ä\ud800',
    )
)
CONTAINERS = {
    'bare': lambda state: state,
    'state_dict': lambda state: dict(state_dict=state),
    'model': lambda state: dict(model=state, optimizer=None),
    'state_dict_ema': lambda state: dict(state_dict_ema=state, state_dict={}),
    'state_dict of a list': lambda state: dict(state_dict=list(state.items())),
    'state_dict of itself': containing_itself,
    'no meta data': lambda state: dict(state_dict=state, meta=None),
    'module': lambda state: {f'module.{name}': tensor for name, tensor in state.items()},
    'backbone': lambda state: dict(
        state_dict={f'backbone.{name}': tensor for name, tensor in state.items()}
    ),
    'a number beside it': lambda state: {**state, 1: 2},
    'list': lambda state: list(state.items()),
    'tensor': lambda state: next(iter(state.values())),
    'none': lambda state: None,
}


def changes(state: dict[str, Tensor]) -> st.SearchStrategy[list[tuple[str, object]]]:
    """Names of a state dict, each with what becomes of its tensor or with another name."""
    change = st.sampled_from([*TENSORS, 'missing']) | st.tuples(st.just('named'), NAMES)
    edit = st.tuples(st.sampled_from(list(state)), change)
    return st.lists(edit, max_size=3, unique_by=lambda edit: edit[0])


def changed(state: dict[str, Tensor], edits: list[tuple[str, object]]) -> dict:
    state = dict(state)
    for name, change in edits:
        tensor = state.pop(name)
        if isinstance(change, tuple):
            state[change[1]] = tensor
        elif change != 'missing':
            state[name] = TENSORS[change](tensor)
    return state


def of_one_family(state: Callable[[str], dict]) -> st.SearchStrategy[tuple[str, list]]:
    return st.sampled_from(list(THEIRS)).flatmap(
        lambda family: st.tuples(st.just(family), changes(state(family)))
    )


@given(of_one_family(authors_state), st.sampled_from(list(CONTAINERS)), st.booleans())
@example(('SOFT', [('norm.bias', ('named', 'block1.999999999.norm1.weight'))]), 'model', False)
@example(('SOFT', [('head.bias', 'of no dimension')]), 'bare', False)
@example(('SOFT', [('pos_embed1', 'empty in the last dimension')]), 'bare', False)
@example(('SOFT', [('norm.bias', 'of complex numbers')]), 'bare', True)
@example(('SOFT', [('pos_embed1', 'overlapping')]), 'bare', False)
@example(('SOFT', [('cls_token', 'without data')]), 'bare', False)
@example(('SOFT', [('norm.bias', 'sparse')]), 'bare', False)
@example(('SOFT', [('norm.bias', 'a parameter with a hook')]), 'bare', False)
@example(('InLineDeiT', [('pos_embed', 'of one dimension')]), 'model', False)
@example(('InLinePVT', []), 'a number beside it', False)
@example(('InLinePVT', [('block1.0.norm1.weight', 'empty')]), 'model', False)
@example(('InLinePVT', [('block1.0.attn.residual.0.weight', 'missing')]), 'model', False)
@example(('InLineSwin', [('norm.bias', ('named', 7))]), 'model', False)
@example(('InLineSwin', [('norm.bias', 'quantised')]), 'model', False)
@example(('InLineSwin', [('layers.0.blocks.0.attn.q.weight', 'of no dimension')]), 'model', True)
def test_states_of_authors(read, case, container, legacy):
    family, edits = case
    read(saved(CONTAINERS[container](changed(authors_state(family), edits)), legacy))


@given(
    of_one_family(lambda family: BACKBONES[family]().state_dict()),
    st.sampled_from(list(CONTAINERS)),
)
@example(('SOFT', [('stages.0.pos_embed.weight', 'a dict')]), 'module')
@example(('SOFT', [('stages.0.pos_embed.weight', 'overlapping')]), 'bare')
@example(('InLineSwin', [('stages.3.norm.bias', ('named', 7))]), 'state_dict')
@example(('InLineSwin', [('stages.3.norm.bias', 'without data')]), 'backbone')
@example(('InLinePVT', [('stages.0.patch_embed.proj.bias', 'a list')]), 'state_dict')
@example(('InLineDeiT', []), 'state_dict of itself')
@example(('InLineDeiT', []), 'state_dict of a list')
def test_states_of_backbones(read, case, container):
    family, edits = case
    model = BACKBONES[family]()
    read(saved(CONTAINERS[container](changed(model.state_dict(), edits))), model)
