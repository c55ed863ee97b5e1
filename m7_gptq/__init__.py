"""M7: GPTQ, 4-bit weights: a quantiser, the checkpoint format, and layers that read it.

``from m7_gptq import LLMEngine, SamplingParams`` loads torch only when the engine is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.request import SamplingParams
    from m7_gptq.engine import LLMEngine

__all__ = ["LLMEngine", "SamplingParams"]


def __getattr__(name: str) -> Any:
    if name == "LLMEngine":
        from m7_gptq.engine import LLMEngine

        return LLMEngine
    if name == "SamplingParams":
        from common.request import SamplingParams

        return SamplingParams
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
