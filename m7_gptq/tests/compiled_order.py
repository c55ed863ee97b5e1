"""What the compiler makes of the kernels for few rows, in order; run by ``test_kernels_order``.

A process of its own: under the interpreter the functions of a kernel are no sources to compile.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from triton import compiler
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from m7_gptq.kernels import few_rows, gemv
from m7_gptq.kernels.repack import SLICE
from m7_gptq.packing import per_word

POINTERS = {
    "x_ptr": "*bf16", "words_ptr": "*i32", "scales_ptr": "*fp16", "zeros_ptr": "*i32",
    "out_ptr": "*bf16",
}  # fmt: skip
NUMBERS = ("rows", "x_stride", "outputs", "groups")
HOPPER = GPUTarget("cuda", 90, 32)


def ptx_of(module: Any, outputs: int, inputs: int, bits: int, gated: bool) -> str:
    """PTX of a launch with groups of 128 on an H100."""
    tiles = -(-inputs // (SLICE * per_word(bits)))
    if module is gemv:
        kernel, config = gemv._gemv_kernel, gemv.default_config(tiles, bits)
    else:
        kernel = few_rows._few_rows_kernel
        config = few_rows.default_config(outputs, tiles, bits, 132)
    constants: dict[str, Any] = {
        "source_ptr": None, "bias_ptr": None, "BITS": bits, "WIDTH": 128, "SLICE": SLICE,
        "SPAN": per_word(bits), "K": inputs, "TILES": tiles, "LANES": 8, "BLOCKS": config.blocks,
        "STEP": config.num_warps, "DEPTH": config.depth, "GATED": gated, "PDL": True,
    }  # fmt: skip
    if module is few_rows:
        constants |= {"M": 8, "PAIRS": bits == 4}
    kinds = {**dict.fromkeys(NUMBERS, "i32"), **dict.fromkeys(constants, "constexpr"), **POINTERS}
    names = kernel.arg_names
    aligned = [names.index(name) for name in (*POINTERS, "x_stride", "outputs")]
    source = ASTSource(
        fn=kernel,
        signature={name: kinds[name] for name in names},
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    return str(
        compiler.compile(source, target=HOPPER, options={"num_warps": config.num_warps}).asm["ptx"]
    )


def reads_of_x(part: str, derived: set[str]) -> int:
    """Loads from addresses that come from the kernel's first parameter, found line by line.

    Args:
        part: Lines of PTX in order.
        derived: Registers that do so at the start; added to.
    """
    reads = 0
    for line in part.splitlines():
        registers = re.findall(r"%rd?\d+", line)
        if "_param_0]" in line:
            derived.add(registers[0])
        elif len(registers) > 1 and derived & set(registers[1:]):
            if re.search(r"ld\.global|cp\.async", line):
                reads += 1
            else:
                derived.add(registers[0])
    return reads


def counts(ptx: str) -> dict[str, list[int]]:
    """How many instructions of each kind stand before the wait, and behind it."""
    parts = ptx.split("griddepcontrol.wait", 1)
    kinds = {"unpack": r"sub\.f32|fma\.rn\.bf16x2", "fma": r"fma\.rn\.f32 ", "mma": r"mma\.sync"}
    found = {kind: [len(re.findall(pattern, p)) for p in parts] for kind, pattern in kinds.items()}
    derived = set[str]()
    return {**found, "x": [reads_of_x(part, derived) for part in parts]}


if __name__ == "__main__":
    name, gated = sys.argv[1], sys.argv[5] == "gated"
    outputs, inputs, bits = map(int, sys.argv[2:5])
    module = {"gemv": gemv, "few_rows": few_rows}[name]
    print(json.dumps(counts(ptx_of(module, outputs, inputs, bits, gated))))
