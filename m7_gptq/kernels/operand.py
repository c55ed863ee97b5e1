"""Words of a thread as an operand of the tensor cores: unpacked, exact, and in place.

Two weights of 4 bits are unpacked at once. The nibbles of two words, 16 bits apart, get the upper
byte of the 16-bit float whose last mantissa bit is worth 1, and one instruction takes the zero
point from both::

    pair = w >> 4j & 0x000F000F | 0x43004300        (128 + q, 128 + q')      in bfloat16
    held = pair · 1 − (128 + zero)                  (q − zero, q' − zero)    exact

That is assembly, the only one of this project. Eight bits, groups of less than a tile and the
interpreter take the readable way, :func:`m7_gptq.kernels.tiles.difference`, and round nothing
either: all differences are whole numbers below 256.
"""

from __future__ import annotations

import triton
import triton.language as tl

from m7_gptq.kernels.tiles import difference


def _pairs_asm(kind: str, exponent: int, one: int) -> str:
    """PTX that unpacks two words into eight pairs; the zero point comes as a pair of its negative.

    Args:
        kind: ``bf16x2`` or ``f16x2``.
        exponent: Upper byte of the float whose last mantissa bit is worth 1: 128 or 1024.
        one: The float 1.
    """
    lines = ["prmt.b32 low, $8, $9, 0x5410;", "prmt.b32 high, $8, $9, 0x7632;"]
    lines += [f"mov.b32 one, {one * 0x10001:#x};"]
    for value in range(8):
        half = "low" if value < 4 else "high"
        lines += [
            f"shr.b32 pair, {half}, {value % 4 * 4};",
            f"lop3.b32 pair, pair, 0x000F000F, {exponent * 0x1000100:#x}, 0xEA;",  # (a & b) | c
            f"fma.rn.{kind} ${value}, pair, one, $10;",
        ]
    return "{ .reg .b32 low, high, pair, one; " + " ".join(lines) + " }"


PAIRS_BF16 = tl.constexpr(_pairs_asm("bf16x2", 0x43, 0x3F80))
PAIRS_F16 = tl.constexpr(_pairs_asm("f16x2", 0x64, 0x3C00))
PAIRS_REGISTERS = tl.constexpr("=r," * 8 + "r,r,r,r")


@triton.jit
def _values(
    words, zero, run, nought,
    DTYPE: tl.constexpr, BITS: tl.constexpr, SPAN: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """A tuple of ``q − zero`` for SPAN values of each word, exact in DTYPE."""
    zero = zero[:, :, :, None]
    if PAIRS and tl.bfloat16 == DTYPE:  # 1.5 instructions a weight instead of 2.5
        found = tl.inline_asm_elementwise(
            PAIRS_BF16, PAIRS_REGISTERS, [words, (zero | 0xC300) * 0x10001],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16,
                   tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True, pack=2,
        )  # fmt: skip
    elif PAIRS:
        found = tl.inline_asm_elementwise(
            PAIRS_F16, PAIRS_REGISTERS, [words, (zero | 0xE400) * 0x10001],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16,
                   tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True, pack=2,
        )  # fmt: skip
    else:
        found = ()
        for i in tl.static_range(SPAN):
            exact = difference(words, zero, run * SPAN + i, BITS, nought)
            found = found + (exact.to(DTYPE),)  # noqa: RUF005
    return found


@triton.jit
def _operand(
    words, zero, run, nought, DTYPE: tl.constexpr,
    BITS: tl.constexpr, SLICE: tl.constexpr, SPAN: tl.constexpr, PAIRS: tl.constexpr,
    LANES: tl.constexpr, BLOCKS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """SPAN values of each word as ``[STEP, BLOCKS · LANES, SPAN · SLICE]``, ordered as places."""
    found = _values(words, zero, run, nought, DTYPE, BITS, SPAN, PAIRS)
    # Joined from the highest bit of a value's number to the lowest, which so lies innermost.
    if SPAN == 8:
        found = (
            tl.join(found[0], found[4]), tl.join(found[1], found[5]),
            tl.join(found[2], found[6]), tl.join(found[3], found[7]),
        )  # fmt: skip
    if SPAN >= 4:
        found = (tl.join(found[0], found[2]), tl.join(found[1], found[3]))
    if SPAN >= 2:
        found = (tl.join(found[0], found[1]),)
    values = tl.reshape(found[0], [LANES, STEP, BLOCKS, SLICE, SPAN])
    values = tl.permute(values, 1, 2, 0, 4, 3)
    return tl.reshape(values, [STEP, BLOCKS * LANES, SPAN * SLICE])


@triton.jit
def unpack_operands(
    words, zeros, nought, DTYPE: tl.constexpr,
    BITS: tl.constexpr, SLICE: tl.constexpr, SPAN: tl.constexpr, PAIRS: tl.constexpr,
    LANES: tl.constexpr, BLOCKS: tl.constexpr, STEP: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A tuple of operands, one for each group in each chunk."""
    RUNS: tl.constexpr = 32 // BITS // SPAN
    found = ()
    for chunk in tl.static_range(DEPTH):
        for run in tl.static_range(RUNS):
            operand = _operand(
                words[chunk], zeros[chunk * RUNS + run], run, nought, DTYPE,
                BITS, SLICE, SPAN, PAIRS, LANES, BLOCKS, STEP,
            )  # fmt: skip
            found = found + (operand,)  # noqa: RUF005
    return found
