"""The one error of the docs build: a page, a line, what is wrong."""

from __future__ import annotations


class DocsError(Exception):
    """Something on a page cannot be built.

    Attributes:
        message: What is wrong, in one line.
        page: Repository path of the page, or "" while the raiser does not know it.
        line: 1-based line, or 0 while the raiser does not know it.
    """

    def __init__(self, message: str, page: str = "", line: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.page = page
        self.line = line

    def at(self, page: str, line: int) -> DocsError:
        """Return the same error placed on a page, unless it already is."""
        return self if self.page else DocsError(self.message, page, line)

    def __str__(self) -> str:
        if not self.page:
            return self.message
        return (
            f"{self.page}:{self.line}: {self.message}"
            if self.line
            else f"{self.page}: {self.message}"
        )
