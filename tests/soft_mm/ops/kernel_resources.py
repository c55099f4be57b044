"""Compile every Triton kernel for a GPU that need not be there: ``kernel_resources.py CAPABILITY``.

Prints for each kernel its name with what it is specialised for, the bytes of shared memory of a
block, the registers of a thread, the bytes of a thread's stack, to which registers spill, and the
thread-instructions per element: those of the innermost loop, times the threads of a block, divided
by the elements that one turn of the loop computes.

Triton keeps what it has compiled in its own cache, by the source and the versions of its tools.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from soft_mm.ops.dynamic_conv import triton_kernels as conv
from soft_mm.ops.gaussian_kernel import triton_kernels as gaussian
from soft_mm.ops.gaussian_product import triton_kernels as product
from soft_mm.ops.inline_attention import triton_kernels as attention
from soft_mm.ops.newton_inverse import triton_kernels as inverse
from soft_mm.ops.newton_solve import triton_kernels as solve
from soft_mm.ops.nystrom_attention import triton_kernels as scale

CUOBJDUMP = Path(triton.__file__).parent / 'backends/nvidia/bin/cuobjdump'


def innermost_loop(sass: str) -> int:
    """Number of instructions of the longest loop without a loop inside, or of a kernel without loops."""
    code = [
        (int(address, 16), instruction)
        for address, instruction in re.findall(r'/\*([0-9a-f]{4,})\*/\s+([^;]+);', sass)
    ]
    loops = []
    for address, instruction in code:
        jump = re.search(r'\bBRA\b.*\b0x([0-9a-f]+)', instruction)
        if jump and int(jump[1], 16) < address:
            loops.append((int(jump[1], 16), address))
    innermost = [
        (first, last)
        for first, last in loops
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in loops)
    ]
    return max(
        (sum(first <= address <= last for address, _ in code) for first, last in innermost),
        default=len(code),
    )


def report(
    capability: int,
    kernel,
    pointers: dict[str, str],
    constants: dict,
    floats=(),
    elements: int = 0,
    strides=(),
    **options,
) -> str:
    """Describe a kernel in a line.

    Arguments not named as pointers, constants or floats are integers, of which strides are multiples
    of 16. Without ``elements`` of a turn of its innermost loop, the last number is '-'.
    """
    kinds = {
        **dict.fromkeys(kernel.arg_names, 'i32'),
        **dict.fromkeys(constants, 'constexpr'),
        **dict.fromkeys(floats, 'fp32'),
        **{k: '*' + v for k, v in pointers.items()},
    }
    aligned = {
        (i,): [['tt.divisibility', 16]]
        for i, name in enumerate(kernel.arg_names)
        if name in pointers or name in strides
    }
    source = ASTSource(kernel, {k: kinds[k] for k in kernel.arg_names}, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget('cuda', capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(compiled.asm['cubin'])
        file.flush()
        usage, sass = (
            subprocess.run(
                [CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for option in ('--dump-resource-usage', '--dump-sass')
        )
    registers, spilled = (re.search(rf'{name}:(\d+)', usage)[1] for name in ('REG', 'STACK'))
    name = '-'.join((kernel.fn.__name__, *pointers.values(), *map(str, constants.values())))
    threads = 32 * compiled.metadata.num_warps
    each = f'{innermost_loop(sass) * threads / elements:.2f}' if elements else '-'
    return f'{name} {compiled.metadata.shared} {registers} {spilled} {each}'


def products(capability: int, rows: int, d: int, dtype: str) -> None:
    """The Gaussian product and its gradients, of d channels, with every config that is tried."""
    torch_dtype = dict(bf16=torch.bfloat16, fp32=torch.float32)[dtype]
    for sums in ('values', 'gradients', 'both'):
        kernel = (product._sum_values if sums == 'values' else product._sum_gradients).fn
        tile = product.Tile.of(rows, d, torch_dtype, sums)
        constants = dict(d=d, e=d, D=d, E=d, ROWS=tile.rows, COLUMNS=tile.columns)
        pointers = dict(a=dtype, b=dtype, y=dtype, norms='fp32', out=dtype)
        if dtype == 'fp32':
            pointers['centre'] = dtype
        else:
            constants = dict(centre=None) | constants
        if sums != 'values':
            pointers['x'] = dtype
            constants['sums'] = None
        if sums == 'both':
            pointers['sums'] = dtype
            del constants['sums']
        for config in product.fitting(product.CONFIGS, tile):
            print(
                report(
                    capability,
                    kernel,
                    pointers,
                    constants,
                    elements=tile.rows * tile.columns,
                    strides=[x for x in kernel.arg_names if re.search('_(batch|head|token)$', x)],
                    num_warps=config.num_warps,
                    num_stages=config.num_stages,
                )
            )


def inline(capability: int, dtype: str, d: int, whole: bool) -> None:
    """The passes over the tokens of InLine attention, with d channels a head."""
    itemsize = dict(bf16=2, fp32=4)[dtype]
    precision = 'tf32x3' if dtype == 'fp32' else 'tf32'
    sums = dict.fromkeys(('statistics', 'sums', 'filters', 'bias'), 'fp32')
    for kernel, names in (
        (attention._sum_keys_and_values, ('qkv',)),
        (attention._attend, ('qkv', 'statistics', 'filters', 'bias', 'out')),
        (attention._sum_gradients, ('g', 'qkv')),
        (attention._gradients, ('g', 'qkv', 'statistics', 'sums', 'filters', 'out')),
    ):
        tokens = attention.TOKENS[itemsize] // (2 if kernel is attention._sum_gradients else 1)
        pointers = {name: sums.get(name, dtype) for name in names}
        print(
            report(
                capability,
                kernel,
                pointers if 'out' in names else pointers | dict(out='fp32'),
                dict(heads=2, d=d, D=d, TOKENS=tokens, WHOLE=whole, PRECISION=precision),
                elements=tokens * d,
                num_warps=4 if d <= 32 else 8,
            )
        )


def main(capability: int) -> None:
    for dtype in ('fp32', 'bf16'):
        for rows, d in ((128, 32), (64, 32), (128, 64)):
            products(capability, rows, d, dtype)
        pointers = dict(x=dtype, y=dtype, norms='fp32')
        constants = dict(d=32, e=32, D=32, E=32)
        if dtype == 'fp32':
            pointers |= dict.fromkeys(('centre', 'rounded', 'values'), dtype)
        else:
            constants |= dict.fromkeys(('centre', 'rounded', 'values'))
        print(report(capability, product._prepare, pointers, constants))
    for kernel, pointers, constants in (
        (
            gaussian._exponentiate,
            ('q', 'k', 'out'),
            dict(d=32, ROWS=gaussian.ROWS, COLUMNS=gaussian.COLUMNS),
        ),
        (
            scale._bounds,
            ('p', 'row_sums', 'bounds'),
            dict(ROWS=scale.ROWS, COLUMNS=scale.COLUMNS),
        ),
        (
            scale._scale,
            ('row_sums', 'bounds', 'out'),
            dict(AS_ROOT=True, NUMBERS=scale.NUMBERS),
        ),
        (
            scale._start,
            ('p', 'v', 'row_sums', 'out'),
            dict(NORMALIZED=True, ROWS=scale.ROWS, COLUMNS=scale.COLUMNS, E=32),
        ),
    ):
        print(report(capability, kernel, dict.fromkeys(pointers, 'fp32'), constants))
    for size in (16, 32, 64):
        print(
            report(
                capability,
                inverse._iterate,
                dict.fromkeys(('p', 'alpha', 'out', 'work'), 'fp32'),
                dict(SIZE=size, STEP=inverse.STEP),
                ['small'],
                num_warps=size // 16,
                num_stages=1,
            )
        )
    for size in (16, 32, 64):
        pointers = ('landmarks', 'v', 'out', 'p', 'row_sums', 'inverse', 'root', 'work')
        print(
            report(
                capability,
                scale._solve,
                dict.fromkeys(pointers, 'fp32') | dict(landmarks='bf16'),
                dict(d=32, NORMALIZED=True, SIZE=size, STEP=scale.STEP, E=32),
                ['small'],
                num_warps=size // 16,
                num_stages=1,
            )
        )
    tile, step = dict(BLOCK=solve.BLOCK), dict(BLOCK=solve.BLOCK, STEP=solve.STEP)
    for kernel, pointers, constants in (
        (solve._shift, ('p', 'root', 'blocks', 'pivot'), tile),
        (solve._panel, ('blocks', 'pivot', 'u', 'w'), step),
        (solve._sweep, ('blocks', 'pivot', 'u', 'w'), step),
        (solve._complement, ('blocks', 'p', 'root', 'out'), tile),
    ):
        pointers = dict.fromkeys(pointers, 'fp32')
        print(report(capability, kernel, pointers, constants, ['pole'], num_warps=8, num_stages=1))
    for columns in (16, 32, 64):
        print(
            report(
                capability,
                solve._product,
                dict.fromkeys(('matrix', 'y', 'x0', 'x1', 'x2', 'out'), 'fp32'),
                dict(ROWS=solve.ROWS, COLUMNS=columns, INNER=solve.INNER),
                ['factor', 'c0', 'c1', 'c2'],
            )
        )
    for dtype in ('fp32', 'bf16'):
        print(
            report(
                capability,
                conv._convolve,
                dict(v=dtype, filters='fp32', bias=dtype, out=dtype),
                dict(FLIPPED=False, TOKENS=conv.TOKENS, CHANNELS=conv.CHANNELS),
                elements=conv.TOKENS * conv.CHANNELS,
                strides=('channels', 'stride'),
            )
        )
        print(
            report(
                capability,
                conv._correlate,
                dict(g=dtype, v=dtype, out='fp32'),
                dict(STEP=conv.STEP, CHANNELS=conv.CHANNELS),
                elements=conv.STEP * conv.CHANNELS,
                strides=('channels', 'stride'),
            )
        )
    for dtype, d, whole in (('bf16', 32, True), ('bf16', 32, False), ('fp32', 64, False)):
        inline(capability, dtype, d, whole)


if __name__ == '__main__':
    main(int(sys.argv[1]))
