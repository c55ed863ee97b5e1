"""``python -m m7_gptq "prompt" …`` answers; ``python -m m7_gptq quantize MODEL OUT`` quantises."""

import sys

from common.cli import main
from common.cli_errors import run

if __name__ == "__main__":
    if sys.argv[1:2] == ["quantize"]:
        from m7_gptq.quantize import main as quantize

        run(lambda argv: quantize(argv[1:]))
    main("m7_gptq")
