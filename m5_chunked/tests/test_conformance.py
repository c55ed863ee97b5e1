"""The public surface of M5, and the same outputs as M4, with chunks of every size."""

from typing import Any, ClassVar

from common.testing.conformance import EngineConformance


class TestM5(EngineConformance):
    """A budget that holds every prompt."""

    stage = "m5_chunked"
    below = "m4_flash"
    options: ClassVar[dict[str, Any]] = {"max_num_seqs": 8, "num_blocks": 64}
    below_options: ClassVar[dict[str, Any]] = {"max_num_seqs": 8, "num_blocks": 64}


class TestM5Tight(EngineConformance):
    """Small chunks in a pool of small odd blocks that preempts all the time."""

    stage = "m5_chunked"
    below = "m4_flash"
    options: ClassVar[dict[str, Any]] = {
        "max_num_seqs": 8, "num_blocks": 40, "block_size": 3, "max_num_batched_tokens": 7,
    }  # fmt: skip
    below_options: ClassVar[dict[str, Any]] = {"max_num_seqs": 8, "num_blocks": 64}
