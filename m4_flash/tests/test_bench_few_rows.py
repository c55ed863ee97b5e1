"""The benchmark of small products: every matrix once, every way, in turn."""

from __future__ import annotations

from pathlib import Path

from m0_init.loader import load
from m2_batching.tests.bench_runs import medians, write_wide_model
from m4_flash.linear import can_pack
from m4_flash.tests.bench_runs import run_bench


def test_every_way_over_all_weights(tmp_path: Path) -> None:
    model = write_wide_model(tmp_path / "wide")
    result = run_bench("few_rows", model, tmp_path, "cpu")
    (weights,) = result.select(metric="weights")
    loaded = load(model, device="cpu").model
    norms = sum(p.nbytes for p in loaded.parameters() if p.dim() == 1)
    assert weights["median"] == loaded.weight_bytes() - norms
    for count in (1, 16):
        times = {
            product: medians(result, product=product, rows=count)
            for product in ("torch", "few_rows", *(["packed"] if can_pack() else []))
        }
        base = times.pop("torch")["time"]
        for value in times.values():
            assert value["speedup_over_torch"] == base / value["time"]
    assert result.config["model"] == model.name, "no folder of this machine"
