"""Changes one function of a source text: blanks its body, or puts a mistake into it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import libcst as cst

from common.errors import ConfigError
from tools.docs_build.source import extract
from tools.drills.spec import Drill, WrongAnswer


def blank(source: str, drills: Sequence[Drill]) -> str:
    """Replace the bodies of the drills' functions; decorators, signature and docstring stay.

    Args:
        source: The file.
        drills: All have their target in it.

    Raises:
        ConfigError: A target is not there.
    """
    blanker = _Blanker({drill.symbol: drill for drill in drills})
    text = cst.parse_module(source).visit(blanker).code
    if blanker.left:
        missing = ", ".join(blanker.left)
        raise ConfigError(f"no {missing} in {drills[0].source}")
    return text


def wrong_text(root: Path, drill: Drill, answer: WrongAnswer) -> str:
    """The file with a wrong answer in place of the drill's function.

    Args:
        root: The repository.
        drill: Whose function.
        answer: The mistake.

    Raises:
        ConfigError: An edit's text does not stand exactly once in the function.
    """
    source = (root / drill.source).read_text(encoding="utf-8")
    place = extract(root / drill.source, drill.symbol)
    rows = source.splitlines(keepends=True)
    begin, end = place.first_line - 1, place.last_line
    body = "".join(rows[begin:end])
    for old, new in answer.edits:
        if body.count(old) != 1:
            found = body.count(old)
            raise ConfigError(f"{drill.package} {drill.id}: {old!r} stands there {found} times")
        body = body.replace(old, new)
    return "".join(rows[:begin]) + body + "".join(rows[end:])


class _Scoped(cst.CSTTransformer):
    """Knows the dotted name of the function it leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.scope: list[str] = []

    def visit_ClassDef(self, node: cst.ClassDef) -> None:  # noqa: N802 (libcst's names)
        """Go in."""
        self.scope.append(node.name.value)

    def leave_ClassDef(  # noqa: N802
        self, original_node: cst.ClassDef, updated_node: cst.ClassDef
    ) -> cst.ClassDef:
        """Come out."""
        self.scope.pop()
        return updated_node

    def visit_FunctionDef(self, node: cst.FunctionDef) -> None:  # noqa: N802
        """Go in."""
        self.scope.append(node.name.value)

    def leave_FunctionDef(  # noqa: N802
        self, original_node: cst.FunctionDef, updated_node: cst.FunctionDef
    ) -> cst.FunctionDef:
        """Come out."""
        name = ".".join(self.scope)
        self.scope.pop()
        return self.leave(name, original_node, updated_node)

    def leave(self, name: str, before: cst.FunctionDef, after: cst.FunctionDef) -> cst.FunctionDef:
        """What becomes of the function ``name``."""
        return after


class _Blanker(_Scoped):
    def __init__(self, drills: dict[str, Drill]) -> None:
        super().__init__()
        self.left = dict(drills)

    def leave(self, name: str, before: cst.FunctionDef, after: cst.FunctionDef) -> cst.FunctionDef:
        drill = self.left.pop(name, None)
        if drill is None:
            return after
        kept = [] if before.get_docstring() is None else [after.body.body[0]]
        body = [part for part in kept if isinstance(part, cst.SimpleStatementLine)]
        comments = [f"# {row}" for row in textwrap.wrap(_lead(drill), width=86)]
        lines = [cst.EmptyLine(comment=cst.Comment(row)) for row in comments]
        hint = f"make {drill.stage}-hint DRILL={drill.id}"
        stop = cst.parse_statement(
            f'raise NotImplementedError(\n    "drill {drill.id}: not written yet ({hint})"\n)\n'
        )
        assert isinstance(stop, cst.SimpleStatementLine)
        body.append(stop.with_changes(leading_lines=lines))
        return after.with_changes(body=cst.IndentedBlock(body=body))


def _lead(drill: Drill) -> str:
    return f"Drill {drill.id}, about {drill.minutes} minutes. {drill.task}"
