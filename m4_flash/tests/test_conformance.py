"""The public surface of M4, and the same outputs as M3."""

from typing import Any, ClassVar

from common.testing.conformance import EngineConformance


class TestM4(EngineConformance):
    """What a CPU runs: sdpa over blocks of 16."""

    stage = "m4_flash"
    below = "m3_paged"
    options: ClassVar[dict[str, Any]] = {"max_num_seqs": 8, "num_blocks": 64}
    below_options: ClassVar[dict[str, Any]] = {"max_num_seqs": 8, "num_blocks": 64}


class TestM4Tight(EngineConformance):
    """The oracle over small odd blocks, in a pool that preempts all the time."""

    stage = "m4_flash"
    below = "m3_paged"
    options: ClassVar[dict[str, Any]] = {
        "max_num_seqs": 8, "num_blocks": 40, "block_size": 3, "attention_backend": "naive",
    }  # fmt: skip
    below_options: ClassVar[dict[str, Any]] = {"max_num_seqs": 8, "num_blocks": 40, "block_size": 3}
