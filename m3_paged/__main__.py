"""``python -m m3_paged "prompt" …``: the common command line over the M3 engine."""

from common.cli import main

if __name__ == "__main__":
    main("m3_paged")
