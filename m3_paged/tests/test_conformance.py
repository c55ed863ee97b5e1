"""The public surface of M3, and the same outputs as M2."""

from typing import Any, ClassVar

from common.testing.conformance import EngineConformance


class TestM3(EngineConformance):
    """Room for everybody, blocks of 16."""

    stage = "m3_paged"
    below = "m2_batching"
    options: ClassVar[dict[str, Any]] = {"max_num_seqs": 8, "num_blocks": 64}
    below_options: ClassVar[dict[str, Any]] = {"max_num_seqs": 8}


class TestM3Tight(EngineConformance):
    """Small odd blocks and a pool that holds little more than one sequence: preemptions galore."""

    stage = "m3_paged"
    below = "m2_batching"
    options: ClassVar[dict[str, Any]] = {"max_num_seqs": 8, "num_blocks": 40, "block_size": 3}
    below_options: ClassVar[dict[str, Any]] = {"max_num_seqs": 8}
