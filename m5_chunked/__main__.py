"""``python -m m5_chunked "prompt" …``: the common command line over the M5 engine."""

from common.cli import main

if __name__ == "__main__":
    main("m5_chunked")
