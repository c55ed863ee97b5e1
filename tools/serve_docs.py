"""``python -m tools.serve_docs``: the site on localhost, built again when a source changes."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

_WATCHED = ("docs", "notebooks", "common", "tools", "interview", "mkdocs.yml")
_SUFFIXES = {
    ".md", ".py", ".ipynb", ".json", ".txt", ".css", ".js", ".toml", ".yml", ".yaml", ".svg",
}  # fmt: skip
_POLL_SECONDS = 1.0


def newest(root: Path) -> float:
    """Return the latest modification time, in seconds, among the sources of the site."""
    places = [root / name for name in _WATCHED] + sorted(root.glob("m[0-9]_*"))
    files = (f for place in places for f in ([place] if place.is_file() else place.rglob("*")))
    return max((f.stat().st_mtime for f in files if f.suffix in _SUFFIXES), default=0.0)


def build() -> bool:
    """Build ``build/docs`` in a fresh interpreter, so that changed tools are used too."""
    return subprocess.run([sys.executable, "-m", "tools.docs_build"], check=False).returncode == 0


def main() -> int:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tools.serve_docs")
    parser.add_argument("--address", default="127.0.0.1:8000", help="host:port (%(default)s)")
    args = parser.parse_args()
    seen = newest(Path.cwd())
    if not build():
        return 1
    config = ["--config-file", "build/mkdocs.yml", "--dev-addr", args.address]
    server = subprocess.Popen([sys.executable, "-m", "mkdocs", "serve", "--quiet", *config])
    print(f"http://{args.address}/  (Ctrl-C stops)", flush=True)
    try:
        while server.poll() is None:
            time.sleep(_POLL_SECONDS)
            now = newest(Path.cwd())
            if now > seen:
                seen = now
                build()  # MkDocs watches build/docs and reloads the browser
    except KeyboardInterrupt:
        pass
    finally:
        server.terminate()
        server.wait()
    return server.returncode if server.returncode and server.returncode > 0 else 0


if __name__ == "__main__":
    sys.exit(main())
