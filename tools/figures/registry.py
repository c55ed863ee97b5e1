"""Names of figures, and drawing one of them as an SVG that fits both colour schemes."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import FoloError
from tools.docs_build.errors import DocsError
from tools.figures.svg import adapt, from_matplotlib

if TYPE_CHECKING:
    from tools.docs_build.results import Results


@dataclass(frozen=True)
class FigureInput:
    """What a figure may draw from.

    Attributes:
        root: The checkout.
        results: The result files.
        constants: The names of ``common/qwen3.py``.
        options: The ``key=value`` options of the directive.
    """

    root: Path
    results: Results
    constants: Mapping[str, Any]
    options: Mapping[str, str]

    def option(self, key: str) -> str:
        """Return an option the figure cannot do without.

        Raises:
            DocsError: The directive does not give it.
        """
        if key not in self.options:
            raise DocsError(f"this figure needs {key}=…")
        return self.options[key]


Draw = Callable[[FigureInput], Any]


@dataclass(frozen=True)
class _Entry:
    draw: Draw
    options: frozenset[str]


_FIGURES: dict[str, _Entry] = {}


def figure(name: str, options: tuple[str, ...] = ()) -> Callable[[Draw], Draw]:
    """Register a function under a figure's name.

    The function returns a matplotlib figure, axes of one, or the text of an SVG.

    Args:
        name: What pages call it.
        options: The directive options it understands; any other is refused.
    """

    def register(draw: Draw) -> Draw:
        assert name not in _FIGURES, f"two figures are called {name}"
        _FIGURES[name] = _Entry(draw, frozenset(options))
        return draw

    return register


def names() -> list[str]:
    """Return the names of all figures, sorted."""
    package = importlib.import_module("tools.figures")
    for module in pkgutil.iter_modules(package.__path__, "tools.figures."):
        importlib.import_module(module.name)
    return sorted(_FIGURES)


def draw(name: str, given: FigureInput, prefix: str) -> str:
    """Draw a figure.

    Args:
        name: A registered name.
        given: Results, constants and options.
        prefix: Put before every id inside the SVG, so that figures of one page do not collide.

    Returns:
        One ``<svg>`` element without blank lines.

    Raises:
        DocsError: The figure is unknown, or what it draws from is missing.
    """
    if name not in names():
        raise DocsError(f"no figure {name!r} in tools/figures (known: {', '.join(names())})")
    entry = _FIGURES[name]
    unknown = sorted(set(given.options) - entry.options)
    if unknown:
        raise DocsError(f"figure {name!r} has no option {', '.join(unknown)}")
    try:
        drawn = entry.draw(given)
    except (FoloError, ValueError) as error:
        raise DocsError(f"figure {name!r}: {error}") from error
    return adapt(drawn if isinstance(drawn, str) else from_matplotlib(drawn), prefix)
