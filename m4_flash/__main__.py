"""``python -m m4_flash "prompt" …``: the common command line over the M4 engine."""

from common.cli import main

if __name__ == "__main__":
    main("m4_flash")
