"""M1: one request at a time, over a contiguous KV cache, with the reference sampler.

``from m1_basic import LLMEngine, SamplingParams`` loads torch only when the engine is first named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.request import SamplingParams
    from m1_basic.engine import LLMEngine

__all__ = ["LLMEngine", "SamplingParams"]


def __getattr__(name: str) -> Any:
    if name == "LLMEngine":
        from m1_basic.engine import LLMEngine

        return LLMEngine
    if name == "SamplingParams":
        from common.request import SamplingParams

        return SamplingParams
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
