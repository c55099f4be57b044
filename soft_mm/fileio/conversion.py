"""Shared parts of the checkpoint converters: command line, reading, checking and writing."""

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
from .checkpoints import find_state_dict, load_checkpoint

State = dict[str, Tensor]
# The authors' checkpoints also contain their command line or their settings, a dict subclass from
# a package that may not be installed.
HARMLESS = [argparse.Namespace, (OrderedDict, 'yacs.config.CfgNode')]


def run(
    description: str,
    containers: tuple[str, ...],
    ema_container: str,
    convert: Callable[[State], tuple[State, dict]],
) -> None:
    """Run a converter's command line: ``SRC DST [--ema] [--trust-pickle] [--quiet]``.

    Args:
        description: first line of the help text.
        containers: keys of the state dict in the authors' checkpoint, which may also be a bare
            state dict.
        ema_container: key of the EMA state dict.
        convert: maps the authors' state dict to ours and the checkpoint's ``meta``.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('src', type=Path, help="the authors' checkpoint")
    parser.add_argument('dst', type=Path, help='checkpoint to write, for the ImageNet config')
    parser.add_argument('--ema', action='store_true', help='convert the EMA weights')
    parser.add_argument(
        '--trust-pickle',
        action='store_true',
        help='allow the checkpoint to run code; use it only for files you trust',
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
                find_state_dict(checkpoint, (ema_container,) if args.ema else containers)
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
    """Check that a converted state dict matches the model exactly.

    Raises:
        ValueError: names the tensors that are unknown, missing, misshapen or not of real numbers, up
            to 20 of them.
    """
    expected = model.state_dict()
    problems = [f'unknown key {name}' for name in converted if name not in expected]
    for name, own in expected.items():
        if name not in converted:
            problems.append(f'missing key {name}')
            continue
        given = converted[name]
        if given.shape != own.shape:
            problems.append(f'wrong shape of {name}: {tuple(given.shape)}, not {tuple(own.shape)}')
        if given.is_floating_point() != own.is_floating_point():
            problems.append(f'wrong dtype of {name}: {given.dtype}, not one such as {own.dtype}')
    if problems:
        more = [f'and {len(problems) - 20} more'] if len(problems) > 20 else []
        raise ValueError(
            '\n  '.join(["does not match the model (names are soft_mm's):", *problems[:20], *more])
        )


def shape(state: State, name: str, ndim: int) -> torch.Size:
    """Shape of a tensor from which the architecture is derived.

    Raises:
        ValueError: if the tensor is missing, empty or does not have ``ndim`` dimensions.
    """
    if name not in state:
        raise ValueError(f'has no {name}: it is a checkpoint of another model, or incomplete')
    shape = state[name].shape
    if len(shape) != ndim or 0 in shape:
        raise ValueError(f'wrong shape of {name}: {tuple(shape)}, not {ndim}-D and above 0')
    return shape


def square_map(name: str, table: Tensor) -> Tensor:
    """Reshape a table of square positions: ``(N, C)`` -> ``(1, C, √N, √N)``."""
    if table.ndim != 2:
        raise ValueError(f'wrong shape of {name}: {tuple(table.shape)}, not (positions, channels)')
    side = isqrt(len(table))
    if side * side != len(table):
        raise ValueError(f'wrong shape of {name}: {len(table)} positions do not form a square')
    return table.mT.unflatten(-1, (side, side))[None].contiguous()


def join_qkv(state: State) -> State:
    """Concatenate every ``attn.q`` and ``attn.kv`` into one ``attn.qkv``.

    Raises:
        ValueError: if their shapes do not allow it.
    """
    joined = {}
    for name, q in state.items():
        if match := re.fullmatch(r'(.*\.attn)\.q\.(weight|bias)', name):
            kv = state.get(f'{match[1]}.kv.{match[2]}')
            joined[f'{match[1]}.qkv.{match[2]}'] = q if kv is None else _concatenate(name, q, kv)
        elif not re.fullmatch(r'.*\.attn\.kv\.(weight|bias)', name):
            joined[name] = q
    return joined


def _concatenate(name: str, q: Tensor, kv: Tensor) -> Tensor:
    if not (q.ndim and kv.ndim) or q.shape[1:] != kv.shape[1:]:
        raise ValueError(
            f'wrong shape of {name}: {tuple(q.shape)}, with {tuple(kv.shape)} for keys and values'
        )
    return torch.cat((q, kv))
