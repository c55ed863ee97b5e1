"""``python -m m2_batching "prompt" …``: the common command line over the M2 engine."""

from common.cli import main

if __name__ == "__main__":
    main("m2_batching")
