"""The commands that pages show: every fenced ``bash`` block is run by ``make test-docs``.

So is every ``python`` block of a README, because READMEs are copied from. A block that cannot run
there says why in its info string::

    ```bash no-run reason="needs-gpu"

Reasons are listed in :data:`REASONS`. A block tagged ``long`` holds only ``make`` targets that
``.ci/run`` calls by itself, so that it is run all the same. Blocks run with ``SMOKE=1``, which lets
make's benchmark targets use their smallest sizes, and may take 300 seconds (``timeout="600"``).

``python -m tools.page_commands`` lists the blocks.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools import shell
from tools.check_docs.problem import Problem
from tools.markdown import Fence, fences

REASONS = {
    "needs-gpu": "needs a CUDA GPU",
    "needs-hub": "downloads a model from the Hugging Face hub",
    "needs-index": "installs packages that the project itself does not need",
    "interactive": "waits for a person, or opens a server",
    "long": "takes too long here; made of make targets that .ci/run calls by itself",
}
_OTHER_SHELLS = {"sh", "shell", "zsh", "shell-session"}
_OPTION = re.compile(r"(?P<key>[a-z-]+)(?:=\"(?P<value>[^\"]*)\")?(?:\s+|$)")
_MAKE_IN_CI = re.compile(r"\bmake\b(?P<targets>[^|#\n;&>)]*)")


@dataclass(frozen=True)
class PageCommand:
    """One fenced block that is a promise.

    Attributes:
        page: Path of the page.
        line: 1-based line of its opening fence.
        language: ``bash`` or ``python``.
        script: The commands.
        reason: Why it is not run, or "" when it is.
        timeout: Seconds it may take.
    """

    page: str
    line: int
    language: str
    script: str
    reason: str
    timeout: float

    @property
    def title(self) -> str:
        """``page:line first command``."""
        return f"{self.page}:{self.line} {self.script.strip().splitlines()[0]}"


def pages(root: Path) -> list[Path]:
    """Return the pages whose commands are promises: README, stage READMEs, docs."""
    docs = [p for p in sorted((root / "docs").rglob("*.md")) if "assets" not in p.parts]
    return [*root.glob("README.md"), *sorted(root.glob("m[0-9]_*/README.md")), *docs]


def commands(root: Path) -> list[PageCommand]:
    """Return every well-formed block of a checkout; a repeated script only once."""
    found: dict[str, PageCommand] = {}
    for page, fence in _fences(root):
        if _is_promise(page, fence) and not _malformed(page, fence):
            found.setdefault(fence.body, _command(page, fence))
    return list(found.values())


def _is_promise(page: str, fence: Fence) -> bool:
    return fence.language == "bash" or (fence.language == "python" and page.endswith("README.md"))


def _fences(root: Path) -> Iterator[tuple[str, Fence]]:
    for path in pages(root):
        page = path.relative_to(root).as_posix()
        for fence in fences(path.read_text(encoding="utf-8")):
            yield page, fence


def _options(fence: Fence) -> dict[str, str]:
    return {m["key"]: m["value"] or "" for m in _OPTION.finditer(fence.info)}


def _command(page: str, fence: Fence) -> PageCommand:
    options = _options(fence)
    reason = options.get("reason", "") if "no-run" in options else ""
    timeout = float(options.get("timeout", "300"))
    return PageCommand(page, fence.line, fence.language, fence.body, reason, timeout)


def _malformed(page: str, fence: Fence) -> Problem | None:
    options = _options(fence)
    unknown = sorted(set(options) - {"no-run", "reason", "timeout", "title"})
    message = ""
    if not fence.body.strip():
        message = f"empty {fence.language} block"
    elif _OPTION.sub("", fence.info).strip() or unknown:
        message = f"cannot read the info string {fence.info!r} (known: no-run reason timeout title)"
    elif ("no-run" in options) != ("reason" in options):
        message = 'no-run and reason="…" go together'
    elif "reason" in options and options["reason"] not in REASONS:
        message = f"reason {options['reason']!r} is none of {', '.join(REASONS)}"
    elif "timeout" in options and not options["timeout"].isdigit():
        message = f"timeout must be whole seconds, got {options['timeout']!r}"
    return Problem(page, fence.line, message) if message else None


def problems(root: Path) -> Iterator[Problem]:
    """Yield every block that is malformed, in another shell's name, or ``long`` without need."""
    in_ci = ci_targets(root)
    for page, fence in _fences(root):
        if fence.language in _OTHER_SHELLS:
            yield Problem(
                page, fence.line, f"call {fence.language!r} blocks bash, so that CI runs them"
            )
        if not _is_promise(page, fence):
            continue
        malformed = _malformed(page, fence)
        if malformed:
            yield malformed
        elif _options(fence).get("reason") == "long":
            yield from _not_in_ci(page, fence, in_ci)


def ci_targets(root: Path) -> set[str]:
    """Return the make targets that ``.ci/run`` calls."""
    path = root / ".ci" / "run"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return {
        word
        for match in _MAKE_IN_CI.finditer(text)
        for word in match["targets"].split()
        if "=" not in word
    }


def _not_in_ci(page: str, fence: Fence, in_ci: set[str]) -> Iterator[Problem]:
    for script_line in fence.body.splitlines():
        words = shlex.split(script_line, comments=True)
        if not words:
            continue
        targets = [word for word in words[1:] if "=" not in word]
        if words[0] != "make" or not targets or not set(targets) <= in_ci:
            message = f"{script_line.strip()!r} is tagged long, but .ci/run does not call it"
            yield Problem(page, fence.line, message)


def run(command: PageCommand, root: Path) -> shell.Finished:
    """Run a block in the checkout, in this process's Python environment and at smoke sizes."""
    env = shell.environment(SMOKE="1", INSTALL="no", VENV=sys.prefix)
    if command.language == "python":
        return shell.run([sys.executable, "-c", command.script], root, command.timeout, env)
    return shell.run_script(command.script, root, command.timeout, env)


def main() -> int:
    """List every block and whether it is run."""
    root = Path.cwd()
    for command in commands(root):
        print(f"{command.reason or 'runs':12} {command.title}")
    wrong = list(problems(root))
    for problem in wrong:
        print(problem, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
