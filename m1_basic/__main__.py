"""``python -m m1_basic "prompt"``: the common command line over the M1 engine."""

from common.cli import main

if __name__ == "__main__":
    main("m1_basic")
