"""The public surface of M2, and the same outputs as M1."""

from typing import Any, ClassVar

from common.testing.conformance import EngineConformance


class TestM2(EngineConformance):
    """Enough slots for everybody."""

    stage = "m2_batching"
    below = "m1_basic"
    options: ClassVar[dict[str, Any]] = {"max_num_seqs": 8}


class TestM2OneSlot(EngineConformance):
    """One slot: everybody takes turns."""

    stage = "m2_batching"
    below = "m1_basic"
    options: ClassVar[dict[str, Any]] = {"max_num_seqs": 1}
