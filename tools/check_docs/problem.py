"""One finding of a check."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Problem:
    """Where something is wrong, and what.

    Attributes:
        page: Path of the page.
        line: 1-based line, 0 for the page as a whole.
        message: What is wrong and what would be right.
    """

    page: str
    line: int
    message: str

    def __str__(self) -> str:
        place = f"{self.page}:{self.line}" if self.line else self.page
        return f"{place}: {self.message}"
