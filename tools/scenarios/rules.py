"""Which piece of source causes which kind of event, stage by stage.

A kind is a :class:`~common.step_record.BlockEvent`'s, or ``admit``, ``compute``, ``preempt``,
``finish``, ``abort``. The player links every event to its rule on the page
``docs/lab/rules.md``, whose snippets are cut out of the source by symbol when the site is built: a
symbol that is not there any more fails the build.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.docs_build.errors import DocsError
from tools.docs_build.source import Snippet, extract

RULES_PAGE = "lab/rules"


@dataclass(frozen=True)
class Rule:
    """A symbol of the source.

    Attributes:
        file: Path in the repository.
        symbol: ``Class.method`` or ``function``.
    """

    file: str
    symbol: str

    @property
    def anchor(self) -> str:
        """Its heading's id on the rules page."""
        module = self.file.removesuffix(".py").replace("/", "-")
        return f"{module}-{self.symbol}".replace(".", "-").lower()

    def snippet(self, root: Path) -> Snippet:
        """Its source.

        Raises:
            DocsError: It is not there.
        """
        if not (root / self.file).is_file():
            raise DocsError(f"rule {self.symbol!r}: no file {self.file!r}")
        return extract(root / self.file, self.symbol)


def _rules(file: str, **symbols: str) -> dict[str, Rule]:
    return {kind: Rule(file, symbol) for kind, symbol in symbols.items()}


_M3_MEMORY = _rules(
    "m3_paged/kv_cache_manager.py",
    alloc="KVCacheManager.allocate_slots",
    free="KVCacheManager.free",
    share="KVCacheManager.fork",
    copy="KVCacheManager._own_copy",
)
_M3_SCHEDULER = _rules(
    "m3_paged/scheduler.py",
    admit="Scheduler._admit",
    compute="Scheduler.schedule",
    preempt="Scheduler._advance",
    finish="Scheduler.update",
    abort="Scheduler.abort",
)
_M5_SCHEDULER = {
    **_rules(
        "m5_chunked/scheduler.py",
        admit="Scheduler._admit",
        preempt="Scheduler._serve",
        finish="Scheduler.update",
        abort="Scheduler.abort",
    ),
    **_rules("m5_chunked/step_draft.py", compute="StepDraft.slice_of"),
}
_M6_MEMORY = {
    **_rules(
        "m6_prefix/kv_cache_manager.py",
        alloc="KVCacheManager.allocate_slots",
        free="KVCacheManager.free",
        share="KVCacheManager.fork",
        copy="KVCacheManager._own_copy",
        hit="KVCacheManager.match_prefix",
        cache="KVCacheManager._publish",
    ),
    **_rules("m6_prefix/block_pool.py", evict="BlockPool._evict"),
}
_M3, _M5, _M6 = (
    {**_M3_SCHEDULER, **_M3_MEMORY},
    {**_M5_SCHEDULER, **_M3_MEMORY},
    {**_M5_SCHEDULER, **_M6_MEMORY},
)

RULES: Mapping[str, Mapping[str, Rule]] = {
    "m1_basic": {
        **_rules(
            "m1_basic/engine.py",
            admit="LLMEngine._run",
            compute="LLMEngine._step",
            abort="LLMEngine._abort",
        ),
        **_rules("common/stopping.py", finish="check_stop"),
    },
    "m2_batching": _rules(
        "m2_batching/scheduler.py",
        admit="Scheduler._admit",
        compute="Scheduler.schedule",
        preempt="Scheduler._make_room",
        finish="Scheduler.update",
        abort="Scheduler.abort",
        alloc="SlotPool.take",
        free="SlotPool.release",
    ),
    "m3_paged": _M3,
    "m4_flash": _M3,
    "m5_chunked": _M5,
    "m6_prefix": _M6,
    "m7_gptq": _M6,
}


def rules_json(root: Path) -> dict[str, dict[str, dict[str, str]]]:
    """What the player reads: by stage and kind, the link, the symbol and its place.

    Raises:
        DocsError: A symbol is not in the source.
    """
    return {
        stage: {
            kind: {
                "href": f"{RULES_PAGE}/#{rule.anchor}",
                "symbol": rule.symbol,
                "place": place(rule, root),
            }
            for kind, rule in rules.items()
        }
        for stage, rules in RULES.items()
    }


def place(rule: Rule, root: Path) -> str:
    """File and line at which the rule's source begins."""
    return f"{rule.file}, line {rule.snippet(root).first_line}"


def uses(rules: Mapping[str, Mapping[str, Rule]] = RULES) -> dict[Rule, dict[str, list[str]]]:
    """Every rule once, with the stages and kinds of event that it is the rule of."""
    found: dict[Rule, dict[str, list[str]]] = {}
    for stage, kinds in rules.items():
        for kind, rule in kinds.items():
            found.setdefault(rule, {}).setdefault(kind, []).append(stage)
    return found
