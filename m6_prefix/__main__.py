"""``python -m m6_prefix "prompt" …``: the common command line over the M6 engine."""

from common.cli import main

if __name__ == "__main__":
    main("m6_prefix")
