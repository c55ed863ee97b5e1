"""Finds the distribution's Chromium for ``make site-test`` and prints its path.

The browser is never downloaded by another way: where there is none, ``apt-get`` installs it if
this process may do that, and otherwise one line says what to install.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find() -> str | None:
    """The path of ``$CHROMIUM``, or of the first browser on the path."""
    wanted = os.environ.get("CHROMIUM")
    if wanted:
        return shutil.which(wanted)
    return next((path for path in map(shutil.which, NAMES) if path), None)


def install() -> bool:
    """Install it with ``apt-get`` where this process is root; returns whether that worked."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    print("Installing chromium with apt-get", file=sys.stderr)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (("update", "-qq"), ("install", "-y", "-qq", "--no-install-recommends")):
        packages = ("chromium",) if command[0] == "install" else ()
        done = subprocess.run(
            ["apt-get", *command, *packages], env=env, stdout=sys.stderr, check=False
        )
        if done.returncode:
            return False
    return True


def main() -> int:
    """Print the path; returns 2 where there is no browser and none can be installed."""
    path = find()
    if path is None and not os.environ.get("CHROMIUM") and install():
        path = find()
    if path is None:
        print(
            "make site-test needs Chromium: apt-get install chromium, or name one: "
            "CHROMIUM=/path/to/chromium make site-test",
            file=sys.stderr,
        )
        return 2
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
