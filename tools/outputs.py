"""Outputs that pages show: recorded once in ``docs/outputs``, run again by ``make test-docs``.

A file starts with the command, then ``#:`` lines of settings, then what was printed::

    $ python -m m1_basic "What is the capital of France?" --temperature 0
    #: show make demo
    #: recorded 2 cores of an AMD EPYC, 2026-11-23
    #: mask ^device .*
    The capital of France is Paris.

``show`` replaces the command on the page, ``recorded`` is the caption, each ``mask`` is a regular
expression for text that differs from machine to machine, ``timeout`` is in seconds. A new run must
equal the recorded one except for masked text, numbers, their units and spacing.

``python -m tools.outputs`` compares all of them; ``--update`` records anew. A page for readers on
GitHub may hold a copy between ``<!-- output: NAME -->`` and ``<!-- /output -->``; ``--copy``
refreshes it, and ``make check-docs`` holds it to the recorded text.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from tools import shell
from tools.docs_build.errors import DocsError
from tools.markdown import fenced

OUTPUTS_DIR = "docs/outputs"
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?")
_UNIT = re.compile(r"# ?(?:[KMGT]i?B|B|ns|µs|us|ms|s|min)\b(/s)?")
_RULE = re.compile(r"[-=─━═]{3,}")
_SETTINGS = {"show", "recorded", "mask", "timeout"}


@dataclass(frozen=True)
class RecordedOutput:
    """One file of ``docs/outputs``.

    Attributes:
        name: Its stem.
        command: The shell command that prints it.
        header: The file's lines before the output, command included.
        shown: The command as the page shows it.
        recorded: Where and when, or "".
        masks: Regular expressions for text that differs between machines.
        timeout: Seconds the command may take.
        body: What it printed.
    """

    name: str
    command: str
    header: tuple[str, ...]
    shown: str
    recorded: str
    masks: tuple[str, ...]
    timeout: float
    body: str


def names(root: Path) -> list[str]:
    """Return the names of all recorded outputs, sorted."""
    return sorted(path.stem for path in (root / OUTPUTS_DIR).glob("*.txt"))


def load(root: Path, name: str) -> RecordedOutput:
    """Read one recorded output.

    Raises:
        DocsError: There is no such file, or its head is malformed.
    """
    path = root / OUTPUTS_DIR / f"{name}.txt"
    if not path.is_file():
        raise DocsError(f"no recorded output {OUTPUTS_DIR}/{name}.txt")
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines or not lines[0].startswith("$ "):
        raise DocsError(f"{OUTPUTS_DIR}/{name}.txt must start with '$ command'")
    count = 1
    settings: dict[str, list[str]] = {}
    while count < len(lines) and lines[count].startswith("#: "):
        key, _, value = lines[count][3:].partition(" ")
        if key not in _SETTINGS:
            raise DocsError(f"{OUTPUTS_DIR}/{name}.txt: unknown setting {key!r}")
        settings.setdefault(key, []).append(value)
        count += 1
    command = lines[0][2:]
    return RecordedOutput(
        name=name,
        command=command,
        header=tuple(lines[:count]),
        shown=settings.get("show", [command])[-1],
        recorded=settings.get("recorded", [""])[-1],
        masks=tuple(settings.get("mask", [])),
        timeout=float(settings.get("timeout", ["300"])[-1]),
        body="\n".join(lines[count:]) + "\n",
    )


def run(output: RecordedOutput, root: Path) -> str:
    """Run the command in the checkout and return what it printed, errors included.

    Raises:
        DocsError: It failed or took too long; the message ends with its last line.
    """
    done = shell.run_script(output.command, root, output.timeout, shell.environment())
    if done.returncode is None:
        raise DocsError(f"{output.command!r} took longer than {output.timeout:g} s")
    if not done.ok:
        last = (done.output.strip().splitlines() or ["no output"])[-1]
        raise DocsError(f"{output.command!r} exited with {done.returncode}: {last}")
    return tidy(done.output)


def tidy(text: str) -> str:
    """Remove colours, overwritten progress and trailing spaces."""
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in _ANSI.sub("", text).split("\n")]
    return "\n".join(lines).strip("\n") + "\n"


def render(output: RecordedOutput, *, command: bool = True) -> list[str]:
    """Return a recorded output as the lines of a fenced block.

    Args:
        output: The recording.
        command: Whether the block starts with the command.
    """
    first = f"$ {output.shown}\n" if command else ""
    return fenced(first + output.body, "console" if command else "text")


def structure(text: str, masks: tuple[str, ...] = ()) -> list[str]:
    """Return the lines of an output with masked text, numbers, units and spacing levelled."""
    for mask in masks:
        text = re.sub(mask, "*", text, flags=re.MULTILINE)
    text = _RULE.sub("---", _UNIT.sub(r"# unit\1", _NUMBER.sub("#", text)))
    return [" ".join(line.split()) for line in text.strip().splitlines()]


def difference(output: RecordedOutput, printed: str) -> list[str]:
    """Return a unified diff of the two structures; empty when they agree."""
    recorded, now = structure(output.body, output.masks), structure(printed, output.masks)
    return list(difflib.unified_diff(recorded, now, "recorded", "now", lineterm="", n=1))


def update(output: RecordedOutput, root: Path) -> None:
    """Run the command and record what it prints."""
    text = "\n".join(output.header) + "\n" + run(output, root)
    (root / OUTPUTS_DIR / f"{output.name}.txt").write_text(text, encoding="utf-8")


def main() -> int:
    """Compare or refresh the recorded outputs of this checkout."""
    parser = argparse.ArgumentParser(prog="python -m tools.outputs", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", help="outputs to run (default: all)")
    parser.add_argument("--update", action="store_true", help="record anew instead of comparing")
    parser.add_argument("--copy", action="store_true", help="only renew the copies inside pages")
    args = parser.parse_args()
    root = Path.cwd()
    if args.copy:
        return _renew_copies(root)
    failed = 0
    for name in args.names or names(root):
        output = load(root, name)
        if args.update:
            update(output, root)
            print(f"recorded {name}")
            continue
        diff = difference(output, run(output, root))
        print(f"{'differs' if diff else 'ok':8} {name}", *diff, sep="\n" if diff else " ")
        failed += bool(diff)
    return 1 if failed else 0


def _renew_copies(root: Path) -> int:
    from tools.output_copies import renewed
    from tools.page_commands import pages

    for path in pages(root):
        text = path.read_text(encoding="utf-8")
        new = renewed(text, root)
        if new.splitlines() != text.splitlines():
            path.write_text(new, encoding="utf-8")
            print(f"renewed the copies in {path.relative_to(root)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
