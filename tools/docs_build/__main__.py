"""``python -m tools.docs_build``: write ``build/docs`` and ``build/mkdocs.yml``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tools.docs_build.errors import DocsError
from tools.docs_build.site import build_site, write_site


def main() -> int:
    """Build the checkout in the current folder; print every error and return 1 on any."""
    os.environ.setdefault("MPLBACKEND", "svg")
    root = Path.cwd()
    try:
        site = build_site(root)
    except* DocsError as group:
        for error in group.exceptions:
            print(error, file=sys.stderr)
        sys.exit(1)
    changed = write_site(site, root)
    pages = sum(name.endswith(".md") for name in site.files)
    print(f"build/docs: {pages} pages, {changed} files changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
