"""M3: a pool of KV blocks, block tables, copy-on-write, and attention that reads through them.

``from m3_paged import LLMEngine, SamplingParams`` loads torch only when the engine is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.request import SamplingParams
    from m3_paged.engine import LLMEngine

__all__ = ["LLMEngine", "SamplingParams"]


def __getattr__(name: str) -> Any:
    if name == "LLMEngine":
        from m3_paged.engine import LLMEngine

        return LLMEngine
    if name == "SamplingParams":
        from common.request import SamplingParams

        return SamplingParams
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
