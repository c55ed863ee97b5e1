"""Write jobs and checkpoints, let the other environment answer, compare, write the result.

``python -m tools.gptq_oracle --python VENV/bin/python`` (``make gptq-oracle`` makes the VENV).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from common.results import write_result
from tools.gptq_oracle import cases
from tools.gptq_oracle.exchange import Exchange, Mismatch

THEIRS = Path(__file__).with_name("theirs.py")
Answer = Callable[[Path], None]
"""Does the jobs of one file."""


def main(argv: Sequence[str] | None = None, answer: Answer | None = None) -> int:
    """Run the cross-check. Returns 0 if everything agrees, else 1.

    Args:
        argv: Command line, without the program.
        answer: Does the jobs, in place of a process of the other environment.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.gptq_oracle", description=__doc__)
    parser.add_argument("--python", required=True, help="interpreter that has GPTQModel")
    parser.add_argument("--out", help="results folder (default: docs/benchmarks/results)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="gptq-oracle-") as folder:
        exchange = Exchange(Path(folder))
        print("writing checkpoints and logits of ours", flush=True)
        jobs = exchange.prepare(cases.ours(), cases.refused(), cases.theirs())
        (answer or _process(args.python))(jobs)
        try:
            result = exchange.compare()
        except Mismatch as error:
            print(f"the programs do not agree:\n{error}", file=sys.stderr)
            return 1
    path = write_result(result, args.out)
    worst = max(row["max"] for row in result.select(metric="logit_difference"))
    print(f"{path}: logits differ by {worst * 1e-6:.1e} at most, all dequantised weights are equal")
    return 0


def _process(python: str) -> Answer:
    """Run :mod:`theirs` in its environment; its log is long and goes to stderr only on failure."""

    def run(jobs: Path) -> None:
        command = [str(Path(python).absolute()), str(THEIRS), str(jobs)]
        process = subprocess.Popen(
            command, cwd=jobs.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        kept: list[str] = []
        for line in process.stdout:
            kept.append(line)
            if line.startswith("[oracle]"):
                print(line, end="", flush=True)
        if process.wait():
            sys.stderr.writelines(kept[-60:])
            raise SystemExit(f"{THEIRS.name} ended with exit code {process.returncode}")

    return run


if __name__ == "__main__":
    sys.exit(main())
