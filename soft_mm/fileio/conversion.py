"""What the checkpoint converters share: reading the authors' file, checking and writing ours."""

import argparse
import re
from collections import OrderedDict
from collections.abc import Callable
from math import isqrt
from pathlib import Path

import torch
from mmengine.logging import MMLogger
from mmengine.runner import save_checkpoint
from torch import Tensor, nn

from ..utils import add_quiet, progress
from .atomic import ATOMIC
from .checkpoints import load_checkpoint

State = dict[str, Tensor]
# What the authors pickle beside the tensors: their command line, or their settings, which are a
# dict of a package that need not be installed.
HARMLESS = [argparse.Namespace, (OrderedDict, 'yacs.config.CfgNode')]


def run(
    description: str,
    containers: tuple[str, ...],
    ema_container: str,
    convert: Callable[[State], tuple[State, dict]],
) -> None:
    """The command of a converter: ``SRC DST [--ema] [--trust-pickle] [--quiet]``.

    Args:
        description: first line of the help.
        containers: keys under which the authors keep the state dict; a bare one is taken as well.
        ema_container: key under which they keep the averaged one.
        convert: from the authors' state dict to ours and what the file says of itself.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('src', type=Path, help="the authors' checkpoint")
    parser.add_argument('dst', type=Path, help='file to write, for the ImageNet config')
    parser.add_argument('--ema', action='store_true', help='take the averaged weights')
    parser.add_argument(
        '--trust-pickle',
        action='store_true',
        help='run the code that the file may contain: only for files you trust',
    )
    add_quiet(parser)
    args = parser.parse_args()
    if args.quiet:
        MMLogger.get_current_instance().setLevel('ERROR')
    try:
        if not args.dst.parent.is_dir():
            raise ValueError(f'there is no folder {args.dst.parent} to write to')
        if args.dst.exists() and args.dst.samefile(args.src):
            raise ValueError(f'{args.dst} is the source; name another file to write')
        with progress(args.quiet) as bar:
            task = bar.add_task('read', total=3)
            checkpoint = load_checkpoint(
                args.src, trust_pickle=args.trust_pickle, harmless=HARMLESS
            )
            bar.update(task, advance=1, description='convert')
            state_dict, meta = convert(
                _state_dict(checkpoint, (ema_container,) if args.ema else containers)
            )
            bar.update(task, advance=1, description='write')
            save_checkpoint(
                dict(state_dict=state_dict, meta=dict(meta, ema=args.ema)),
                str(args.dst),
                backend_args=ATOMIC,
            )
            bar.update(task, advance=1)
    except (ValueError, OSError, RuntimeError) as error:
        parser.exit(1, f'{parser.prog}: error: {args.src}: {error}\n')
    if not args.quiet:
        print(f'{args.dst}: {len(state_dict)} tensors, {meta}')


def check(converted: State, model: nn.Module) -> None:
    """That the converted state dict is whole, and nothing more.

    Raises:
        ValueError: naming every tensor that is unknown, missing or of a wrong shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = [f'unknown key {name}' for name in converted if name not in expected]
    for name, shape in expected.items():
        if name not in converted:
            problems.append(f'missing key {name}')
        elif converted[name].shape != shape:
            problems.append(f'wrong shape of {name}: {tuple(converted[name].shape)}, not {shape}')
    if problems:
        more = [f'and {len(problems) - 20} more'] if len(problems) > 20 else []
        raise ValueError(
            '\n  '.join(
                ['does not fit the model (the names are those it has here):', *problems[:20], *more]
            )
        )


def shape(state: State, name: str, ndim: int) -> torch.Size:
    """Shape of a tensor that tells about the model.

    Raises:
        ValueError: if there is none of this name, or it has another number of dimensions.
    """
    if name not in state:
        raise ValueError(f'has no {name}: it is a checkpoint of another model, or not a whole one')
    if state[name].ndim != ndim:
        raise ValueError(f'wrong shape of {name}: {tuple(state[name].shape)}, not {ndim}-D')
    return state[name].shape


def square_map(name: str, table: Tensor) -> Tensor:
    """A table ``(N, C)`` of N places -> ``(1, C, √N, √N)``."""
    if table.ndim != 2:
        raise ValueError(f'wrong shape of {name}: {tuple(table.shape)}, not (positions, channels)')
    side = isqrt(len(table))
    if side * side != len(table):
        raise ValueError(f'wrong shape of {name}: {len(table)} positions are no square map')
    return table.mT.unflatten(-1, (side, side))[None].contiguous()


def join_qkv(state: State) -> State:
    """Every ``attn.q`` and ``attn.kv`` as one ``attn.qkv``."""
    joined = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r'(.*\.attn)\.q\.(weight|bias)', name):
            kv = state.get(f'{match[1]}.kv.{match[2]}', tensor[:0])
            joined[f'{match[1]}.qkv.{match[2]}'] = torch.cat((tensor, kv))
        elif not re.fullmatch(r'.*\.attn\.kv\.(weight|bias)', name):
            joined[name] = tensor
    return joined


def _state_dict(checkpoint: object, containers: tuple[str, ...]) -> State:
    if not isinstance(checkpoint, dict):
        raise ValueError(f'holds a {type(checkpoint).__name__}, not a dict')
    key = next((key for key in containers if key in checkpoint), None)
    state = checkpoint if key is None else checkpoint[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(
            f'has no state dict under {" or ".join(containers)}, only {list(checkpoint)[:10]}'
        )
    prefix = 'module.' if all(name.startswith('module.') for name in state) else ''
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
