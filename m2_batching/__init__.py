"""M2: continuous batching over fixed KV slots, with padded batches, priorities and preemption.

``from m2_batching import LLMEngine, SamplingParams`` loads torch only when the engine is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.request import SamplingParams
    from m2_batching.engine import LLMEngine

__all__ = ["LLMEngine", "SamplingParams"]


def __getattr__(name: str) -> Any:
    if name == "LLMEngine":
        from m2_batching.engine import LLMEngine

        return LLMEngine
    if name == "SamplingParams":
        from common.request import SamplingParams

        return SamplingParams
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
