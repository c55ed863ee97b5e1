"""A griffe extension: Sphinx roles in docstrings become plain code in the API reference.

Our docstrings write ``:class:`Request```, which editors know how to follow; Markdown does not.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc|obj|ref):`~?([^`]+)`")
_LITERAL = re.compile(r"::$", re.MULTILINE)
_DOUBLE = re.compile(r"``([^`]+)``")


def plain(text: str) -> str:
    """Return a docstring with roles and reST literals as Markdown."""
    return _LITERAL.sub(":", _DOUBLE.sub(r"`\1`", _ROLE.sub(r"`\1`", text)))


class SphinxRoles(Extension):
    """Applies :func:`plain` to every docstring that griffe collects."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite one object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = plain(obj.docstring.value)
