"""The kernels for few rows unpack a weight before they wait for x, and read no x before.

Both are lost silently: the compiler may move arithmetic behind the wait (slow), and a pipelined
loop would read x in front of it (wrong, now and then). Compiled for an H100, wherever this runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

CASES = [
    # kernel, outputs, inputs, bits, gated, instructions that unpack the weights of a thread
    ("gemv", 4096, 1024, 4, "plain", 64),
    ("gemv", 6144, 1024, 4, "gated", 64),
    ("gemv", 1024, 3072, 4, "plain", 192),
    ("gemv", 1024, 2048, 8, "plain", 128),
    ("few_rows", 4096, 1024, 4, "plain", 128),
    ("few_rows", 6144, 1024, 4, "gated", 128),
    ("few_rows", 1024, 3072, 4, "plain", 96),
    ("few_rows", 1024, 2048, 8, "plain", 256),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case[:5])))
def test_unpacked_before_the_wait(case: tuple[str, int, int, int, str, int]) -> None:
    kernel, *numbers, gated, weights = case
    found = subprocess.run(
        [sys.executable, "-m", "m7_gptq.tests.compiled_order", kernel, *map(str, numbers), gated],
        capture_output=True,
        text=True,
        check=True,
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
    )
    counts = json.loads(found.stdout)
    assert counts["unpack"][0] == weights
    assert counts["unpack"][1] <= 4  # SwiGLU's
    assert counts["x"][0] == 0 < counts["x"][1]
    products = counts["mma" if kernel == "few_rows" else "fma"]
    assert products[0] == 0 < products[1]
