"""The public surface of M1."""

from typing import Any, ClassVar

from common.testing.conformance import EngineConformance


class TestM1(EngineConformance):
    """With the KV cache."""

    stage = "m1_basic"


class TestM1WithoutCache(EngineConformance):
    """Recomputing everything must not change a token."""

    stage = "m1_basic"
    below = "m1_basic"
    options: ClassVar[dict[str, Any]] = {"use_cache": False}
