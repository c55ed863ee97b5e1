"""The eight stages as the site lists them, and which of them are there yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tools.docs_build.context import PageContext
from tools.docs_build.errors import DocsError
from tools.docs_build.measured import MEASURED, Measure, load


@dataclass(frozen=True)
class Stage:
    """One step of the staircase.

    Attributes:
        number: 0 to 7.
        package: Its folder.
        title: A few words.
        adds: One sentence: what it teaches that the stage below could not do.
        stem: Stem of its note and notebook.
    """

    number: int
    package: str
    title: str
    adds: str
    stem: str

    @property
    def note(self) -> str:
        """Repository path of the learning note."""
        return f"docs/learn/{self.stem}.md"

    @property
    def log(self) -> str:
        """Repository path of the dev log."""
        return f"docs/dev/milestone_{self.number}.md"

    @property
    def changes(self) -> str:
        """Repository path of the page about what it changed; "" for the lowest stage."""
        return f"docs/stages/m{self.number - 1}_to_m{self.number}.md" if self.number else ""

    @property
    def readme(self) -> str:
        """Repository path of the stage's page."""
        return f"{self.package}/README.md"

    @property
    def notebook(self) -> str:
        """Repository path of the notebook."""
        return f"notebooks/{self.stem}.ipynb"

    def finished(self, root: Path) -> bool:
        """Return whether the stage has its code, page and note: only then do pages link to it."""
        needed = (f"{self.package}/__init__.py", self.readme, self.note)
        return all((root / path).is_file() for path in needed)


STAGES = (
    Stage(
        0,
        "m0_init",
        "Checkpoint and memory plan",
        "Reads a checkpoint, builds the decoder, and says what will fit in memory before any token "
        "is generated.",
        "00_project_setup",
    ),
    Stage(
        1,
        "m1_basic",
        "KV cache and sampling",
        "Answers one request at a time: prefill, decode over a contiguous KV cache, sampling.",
        "01_basic_inference",
    ),
    Stage(
        2,
        "m2_batching",
        "Continuous batching",
        "Forms a new batch at every step, so that short requests leave and waiting ones join.",
        "02_continuous_batching",
    ),
    Stage(
        3,
        "m3_paged",
        "Paged KV cache",
        "Cuts the cache into blocks that any request may use, with block tables and copy-on-write.",
        "03_paged_kv_cache",
    ),
    Stage(
        4,
        "m4_flash",
        "Flash attention and CUDA graphs",
        "Puts fused Triton kernels and captured graphs behind one backend interface.",
        "04_flash_attention",
    ),
    Stage(
        5,
        "m5_chunked",
        "Chunked prefill",
        "Mixes slices of long prompts with decoding under one token budget.",
        "05_chunked_prefill",
    ),
    Stage(
        6,
        "m6_prefix",
        "Prefix caching",
        "Finds blocks that an earlier request already computed, and shares them.",
        "06_prefix_caching",
    ),
    Stage(
        7,
        "m7_gptq",
        "GPTQ 4-bit weights",
        "Quantises the linear layers to four bits and multiplies them without unpacking to memory.",
        "07_gptq_quantization",
    ),
)


def render_stages(view: str, context: PageContext) -> list[str]:
    """Render the ``stages`` directive.

    Args:
        view: ``cards`` (landing page), ``learn`` (notes and notebooks) or ``dev`` (logs).
        context: The page.

    Raises:
        DocsError: The view is unknown.
    """
    match view:
        case "cards":
            return _cards(context)
        case "learn":
            return _table(context, "What it adds", {"Note": "note", "Notebook": "notebook"})
        case "dev":
            return _table(context, None, {"Log": "log", "Stage page": "readme"})
    raise DocsError(f"unknown view {view!r} of the stages (known: cards, learn, dev)")


def _cards(context: PageContext) -> list[str]:
    measures = load(context.root) if (context.root / MEASURED).is_file() else []
    lines = ['<div class="folo-cards" markdown>', ""]
    for stage in STAGES:
        done = stage.finished(context.root)
        state = "done" if done else "later"
        lines += [f'<div class="folo-card folo-card--{state}" markdown>', ""]
        lines += [f"**M{stage.number} · {stage.title}**", "", stage.adds, ""]
        if done:
            lines += _delta([item for item in measures if item.stage == stage.package], context)
            links = {
                "Note": stage.note,
                "Code": stage.readme,
                "Changes": stage.changes,
                "Notebook": stage.notebook,
            }
            lines += [" · ".join(_links(links, context)), "{ .folo-card__links }", ""]
        else:
            lines += ["not built yet", "{ .folo-card__links }", ""]
        lines += ["</div>", ""]
    return [*lines, "</div>"]


def _delta(measures: list[Measure], context: PageContext) -> list[str]:
    """The first card sentence whose run is there, with its number."""
    for item in measures:
        if item.card and (reading := item.reading(context)):
            text = item.card.replace("{}", f"**{reading.linked(context)}**")
            return [text, "{ .folo-card__delta }", ""]
    return []


def _links(links: dict[str, str], context: PageContext) -> list[str]:
    return [
        f"[{text}]({context.link_to(context.pages[path])})"
        for text, path in links.items()
        if path in context.pages
    ]


def _table(context: PageContext, adds: str | None, columns: dict[str, str]) -> list[str]:
    head = ["Stage", *([adds] if adds else []), *columns]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for stage in STAGES:
        cells = [f"**M{stage.number}** {stage.title}", *([stage.adds] if adds else [])]
        for text, attribute in columns.items():
            linked = _links({text: getattr(stage, attribute)}, context)
            cells.append(linked[0] if linked else "–")
        lines.append("| " + " | ".join(cells) + " |")
    return lines
