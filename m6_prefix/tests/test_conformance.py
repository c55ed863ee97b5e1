"""The public surface of M6, and the same outputs as M5, with caching on and off."""

from typing import Any, ClassVar

from common.testing.conformance import EngineConformance

BELOW: dict[str, Any] = {"max_num_seqs": 8, "num_blocks": 64}


class TestM6(EngineConformance):
    """Small blocks, so that short prompts are found."""

    stage = "m6_prefix"
    below = "m5_chunked"
    options: ClassVar[dict[str, Any]] = {"max_num_seqs": 8, "num_blocks": 256, "block_size": 4}
    below_options: ClassVar[dict[str, Any]] = BELOW


class TestM6Tight(EngineConformance):
    """The tree, small chunks, and a pool that preempts and evicts all the time."""

    stage = "m6_prefix"
    below = "m5_chunked"
    options: ClassVar[dict[str, Any]] = {
        "max_num_seqs": 8, "num_blocks": 40, "block_size": 3, "max_num_batched_tokens": 7,
        "prefix_index": "tree",
    }  # fmt: skip
    below_options: ClassVar[dict[str, Any]] = BELOW


class TestM6Off(EngineConformance):
    """Without caching it is M5."""

    stage = "m6_prefix"
    below = "m5_chunked"
    options: ClassVar[dict[str, Any]] = {**BELOW, "enable_prefix_caching": False}
    below_options: ClassVar[dict[str, Any]] = BELOW
