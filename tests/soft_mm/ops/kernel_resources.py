"""Compile every Triton kernel for a GPU that need not be there: ``kernel_resources.py CAPABILITY``.

Prints for each kernel its name with what it is specialised for, the bytes of shared memory of a
block, the registers of a thread, and the bytes of a thread's stack, to which registers spill.

Triton keeps what it has compiled in its own cache, by the source and the versions of its tools.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from soft_mm.ops.dynamic_conv import triton_kernels as conv
from soft_mm.ops.gaussian_product import triton_kernels as product
from soft_mm.ops.newton_inverse import triton_kernels as inverse
from soft_mm.ops.newton_solve import triton_kernels as solve

CUOBJDUMP = Path(triton.__file__).parent / 'backends/nvidia/bin/cuobjdump'


def report(
    capability: int, kernel, pointers: dict[str, str], constants: dict, floats=(), **options
) -> str:
    """Describe a kernel in a line. Arguments not named as pointers, constants or floats are integers."""
    kinds = {
        **dict.fromkeys(kernel.arg_names, 'i32'),
        **dict.fromkeys(constants, 'constexpr'),
        **dict.fromkeys(floats, 'fp32'),
        **{k: '*' + v for k, v in pointers.items()},
    }
    aligned = {
        (i,): [['tt.divisibility', 16]]
        for i, name in enumerate(kernel.arg_names)
        if name in pointers or name in ('channels', 'stride')  # multiples of 16 in every model
    }
    source = ASTSource(kernel, {k: kinds[k] for k in kernel.arg_names}, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget('cuda', capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(compiled.asm['cubin'])
        file.flush()
        usage = subprocess.run(
            [CUOBJDUMP, '--dump-resource-usage', file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    registers, spilled = (re.search(rf'{name}:(\d+)', usage)[1] for name in ('REG', 'STACK'))
    name = '-'.join((kernel.fn.__name__, *pointers.values(), *map(str, constants.values())))
    return f'{name} {compiled.metadata.shared} {registers} {spilled}'


def main(capability: int) -> None:
    for d in (32, 64):
        for dtype, exponent in (('fp32', 'tf32x3'), ('bf16', 'tf32')):
            constants = dict(
                d=d, e=d, D=d, E=d, ROWS=product.ROWS, COLUMNS=product.COLUMNS, EXPONENT=exponent
            )
            pointers = dict(q=dtype, k=dtype, v=dtype, out='fp32')
            for kernel in (product._sum_values, product._sum_differences):
                if 'g' in kernel.arg_names:
                    pointers['g'] = 'fp32'
                print(
                    report(capability, kernel, pointers, constants, num_warps=d // 8, num_stages=2)
                )
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
            )
        )
        print(
            report(
                capability,
                conv._correlate,
                dict(g=dtype, v=dtype, out='fp32'),
                dict(STEP=conv.STEP, CHANNELS=conv.CHANNELS),
            )
        )


if __name__ == '__main__':
    main(int(sys.argv[1]))
