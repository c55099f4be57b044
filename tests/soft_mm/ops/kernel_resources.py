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
from soft_mm.ops.gaussian_product import triton_kernels as product
from soft_mm.ops.newton_inverse import triton_kernels as inverse

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
        pointers = dict(a=dtype, b=dtype, y=dtype, a_norms='fp32', b_norms='fp32', out=dtype)
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


def main(capability: int) -> None:
    for dtype in ('fp32', 'bf16'):
        for rows, d in ((128, 32), (64, 32), (128, 64)):
            products(capability, rows, d, dtype)
    for block in (16, 64):
        print(
            report(
                capability,
                inverse._iterate,
                dict(p='fp32', alpha='fp32', out='fp32'),
                dict(BLOCK=block),
                ['small'],
            )
        )
    for dtype in ('fp32', 'bf16'):
        tile = dict(TOKENS=conv.TOKENS, CHANNELS=conv.CHANNELS)
        print(
            report(
                capability,
                conv._convolve,
                dict.fromkeys(('v', 'filters', 'bias', 'out'), dtype),
                dict(FLIPPED=False, **tile),
            )
        )
        print(
            report(
                capability,
                conv._correlate,
                dict(g=dtype, v=dtype, out='fp32'),
                {**tile, 'TOKENS': conv.TOKENS // 2},
            )
        )


if __name__ == '__main__':
    main(int(sys.argv[1]))
