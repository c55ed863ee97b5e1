"""The layers that the kernel benchmark times: shapes, numbers of rows, random integers."""

from __future__ import annotations

import math
from argparse import Namespace
from dataclasses import dataclass

import torch
from torch import Tensor

from m4_flash.benchmarks.attention import COLD_BYTES, MOST_COPIES
from m7_gptq.checkpoint import LinearFormat
from m7_gptq.kernels.repack import SLICE, PackedWeight
from m7_gptq.linear import GPTQLinear
from m7_gptq.packing import max_int, per_word

GROUP = 128
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Shape:
    """One linear layer.

    Attributes:
        name: As result rows call it.
        outputs: Width of the output.
        inputs: Width of the input, a multiple of 128.
        bits: 4 or 8.
    """

    name: str
    outputs: int
    inputs: int
    bits: int = 4


QWEN3 = (
    Shape("qkv 4096x1024", 4096, 1024),
    Shape("o 1024x2048", 1024, 2048),
    Shape("gate_up 6144x1024", 6144, 1024),
    Shape("down 1024x3072", 1024, 3072),
)
"""The layers of Qwen3-0.6B, merged as they run."""


def shapes_of(args: Namespace) -> list[Shape]:
    """The layers of Qwen3-0.6B; on a GPU a large one and an 8-bit ``lm_head`` too."""
    if args.smoke:
        return [Shape("64x256", 64, 256)]
    if args.device.startswith("cuda"):
        large = Shape("8192x8192", 8192, 8192)
        return [*QWEN3, large, Shape("lm_head 151936x1024", 151936, 1024, bits=8)]
    return list(QWEN3)


def batches_of(args: Namespace) -> tuple[int, ...]:
    """Rows of x."""
    if args.smoke:
        return (1, 17)
    return BATCHES if args.device.startswith("cuda") else (1, 16)


def random_weight(shape: Shape, device: str, seed: int = 0) -> PackedWeight:
    """Random integers, zero points and scales; products of normal x have a deviation of about 1."""
    generator = torch.Generator(device).manual_seed(seed)

    def words(*size: int) -> Tensor:
        return torch.randint(
            -(2**31), 2**31, size, dtype=torch.int32, device=device, generator=generator
        )

    count, groups = per_word(shape.bits), shape.inputs // GROUP
    deviation = max_int(shape.bits) * math.sqrt(shape.inputs / 6)  # of a difference of two integers
    scales = torch.rand(groups, shape.outputs, device=device, generator=generator) + 0.5
    return PackedWeight(
        words=words(shape.inputs // (SLICE * count), shape.outputs, SLICE),
        zeros=words(groups, shape.outputs // count),
        scales=(scales / deviation).half(),
        source=None,
        bits=shape.bits,
        group_width=GROUP,
        in_features=shape.inputs,
    )


def copies_of(size: int, device: str) -> int:
    """How many weights of that many bytes exceed the cache; one on a CPU."""
    return min(-(-COLD_BYTES // size), MOST_COPIES) if device.startswith("cuda") else 1


def reference_layer(shape: Shape, dtype: torch.dtype) -> GPTQLinear:
    """A layer of random integers on the CPU, as a loaded checkpoint gives it."""
    form = LinearFormat(shape.bits, GROUP, "gptq_v2", torch.float16, False, False)
    layer = GPTQLinear(
        shape.name, shape.inputs, (shape.outputs,), False, form,
        bias=False, dtype=dtype, device="cpu",
    )  # fmt: skip
    packed = random_weight(shape, "cpu")
    words = packed.words.transpose(1, 2).reshape(layer.qweight.shape)  # random in any order
    for name, tensor in (("qweight", words), ("qzeros", packed.zeros), ("scales", packed.scales)):
        layer.load_shard(name, 0, tensor)
    return layer
