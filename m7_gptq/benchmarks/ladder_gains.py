"""What follows from the ladder's rows: each rung against M1, and its bytes against M2's."""

from __future__ import annotations

import math
from collections.abc import Sequence

from common.results import Result, Row, row
from m7_gptq.benchmarks.ladder_rungs import FIRST, FOUR_BITS, LAST, Labels

GAINS = {
    "output_throughput": ("throughput_gain", 1),
    "ttft_p50": ("ttft_gain", -1),
    "time_per_token": ("time_per_token_gain", -1),
}
"""What is held against M1: metric, name of the ratio, whether more (1) or less (−1) is better."""
BASE = "m2_batching"
"""The stage that bytes are held against: the first that serves everybody at once."""

Key = tuple[str, str, int]
"""Stage, form of the weights, number of requests."""


def derived_rows(rows: Sequence[Row]) -> list[Row]:
    """Ratios against M1, their geometric mean, and bytes saved against M2, of each rung above.

    Args:
        rows: The measured ones of all rungs, M1's and M2's among them.
    """
    table, found = by_rung(rows), list[Row]()
    base = {stage: values for (stage, _, _), values in table.items() if stage in (FIRST, BASE)}
    for (stage, weights, requests), values in table.items():
        if stage == FIRST:
            continue
        labels: Labels = {"engine": stage, "weights": weights, "requests": requests}
        gains = {
            name: (values[metric] / base[FIRST][metric]) ** sign
            for metric, (name, sign) in GAINS.items()
        }
        found += [row(name, "ratio", gain, **labels) for name, gain in gains.items()]
        mean = math.prod(gains.values()) ** (1 / len(gains))
        found.append(row("geometric_mean", "ratio", mean, **labels))
        if stage != BASE:
            saved = 1 - values["total_bytes"] / base[BASE]["total_bytes"]
            found.append(row("bytes_saved", "share", saved, **labels))
    return found


def by_rung(rows: Sequence[Row]) -> dict[Key, dict[str, float]]:
    """Medians by metric, of each rung, in order."""
    table: dict[Key, dict[str, float]] = {}
    for item in rows:
        key = (item["engine"], item["weights"], item["requests"])
        table.setdefault(key, {})[item["metric"]] = item["median"]
    return table


def summary(result: Result) -> str:
    """The best form of M7 against M1, and what four bits save against M2."""
    means = result.select(metric="geometric_mean", engine=LAST)
    best = max(means, key=lambda item: float(item["median"]))
    own = {"engine": LAST, "weights": best["weights"]}
    speed, first, token = (
        result.select(metric=name, **own)[0]["median"] for name, _ in GAINS.values()
    )
    (saved,) = result.select(metric="bytes_saved", engine=LAST, weights=FOUR_BITS)
    return (
        f"m7_gptq ladder, {best['weights']}: {best['median']:.3g} times M1 "
        f"(throughput {speed:.3g}, first token {first:.3g}, time per token {token:.3g}); "
        f"{FOUR_BITS} takes {saved['median']:.1%} fewer bytes than M2"
    )
