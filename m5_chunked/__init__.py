"""M5: one token budget a step, shared by decodes and chunks of prompts.

``from m5_chunked import LLMEngine, SamplingParams`` loads torch only when the engine is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.request import SamplingParams
    from m5_chunked.engine import LLMEngine

__all__ = ["LLMEngine", "SamplingParams"]


def __getattr__(name: str) -> Any:
    if name == "LLMEngine":
        from m5_chunked.engine import LLMEngine

        return LLMEngine
    if name == "SamplingParams":
        from common.request import SamplingParams

        return SamplingParams
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
