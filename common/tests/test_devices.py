"""Devices, floors and pool sizes, against numbers worked out by hand."""

import pytest

from common.devices import (
    A100_80GB,
    DEVICES,
    GIB,
    H100_80GB,
    RTX_4090,
    ChunkedPrefill,
    chunked_prefill,
    decode_ceiling_tokens_per_second,
    decode_floor_seconds,
    decode_saturation_tokens_per_second,
    format_bytes,
    kv_equals_weights_batch,
    kv_pool_bytes,
    kv_pool_tokens,
    prefill_floor_seconds,
    step_floor_seconds,
)
from common.errors import ConfigError, OutOfMemoryError
from common.model_costs import decode_bytes, weight_bytes
from common.qwen3 import QWEN3_0_6B


def test_floors() -> None:
    model = QWEN3_0_6B
    a100, h100 = A100_80GB.spec_bandwidth, H100_80GB.spec_bandwidth
    assert decode_floor_seconds(model, a100) == pytest.approx(0.585e-3, abs=5e-7)
    assert decode_floor_seconds(model, h100) == pytest.approx(0.356e-3, abs=5e-7)
    assert decode_ceiling_tokens_per_second(model, a100) == pytest.approx(1710, abs=1)
    assert decode_ceiling_tokens_per_second(model, h100) == pytest.approx(2810, abs=1)
    assert decode_bytes(model, 10, 1024) == 1_192_099_840 + 10 * 1024 * 114_688
    assert decode_floor_seconds(model, h100, 8, 2048) == decode_bytes(model, 8, 2048) / h100
    assert kv_equals_weights_batch(model, 1024) == pytest.approx(10.15, abs=5e-3)
    limit = decode_saturation_tokens_per_second(model, h100, 1024)
    assert limit == pytest.approx(28_500, rel=2e-3)
    for batch in (1, 64, 4096):
        assert decode_ceiling_tokens_per_second(model, h100, batch, 1024) < limit
    assert decode_ceiling_tokens_per_second(model, h100, 10**7, 1024) == pytest.approx(limit, 1e-4)
    assert prefill_floor_seconds(model, 312e12, 2048) == pytest.approx(7.3e-3, abs=5e-5)
    assert prefill_floor_seconds(model, 989e12, 2048) == pytest.approx(2.3e-3, abs=5e-5)


def test_devices() -> None:
    assert [round(device.ridge) for device in (A100_80GB, H100_80GB, RTX_4090)] == [153, 295, 164]
    assert H100_80GB.bandwidth(measured=True) == 3.0e12 < H100_80GB.bandwidth()
    with pytest.raises(ConfigError, match="no measured bandwidth for RTX 4090"):
        RTX_4090.bandwidth(measured=True)
    assert set(DEVICES.values()) == {A100_80GB, H100_80GB, RTX_4090}


def test_pools() -> None:
    model = QWEN3_0_6B
    assert kv_pool_tokens(model, 8 * GIB) == pytest.approx(47_600, abs=60)
    assert kv_pool_tokens(model, 24 * GIB) == pytest.approx(182_000, abs=500)
    assert kv_pool_tokens(model, 24 * GIB, block_size=16) == 11_404 * 16
    # 80 GiB as sold; a driver reports about one per cent less.
    assert kv_pool_tokens(model, 80 * GIB) == 654_328
    assert kv_pool_tokens(model, int(79.2 * GIB)) == pytest.approx(647_000, rel=1e-3)
    pool = kv_pool_bytes(model, 24 * GIB)
    assert pool + weight_bytes(model) + GIB == int(24 * GIB * 0.9)
    assert kv_pool_bytes(model, 24 * GIB, dtype="float32") == pool - weight_bytes(model)


def test_a_device_that_is_too_small_is_an_error_with_both_sizes() -> None:
    with pytest.raises(OutOfMemoryError, match=r"2\.11 GiB of weights .* 1\.80 GiB \(0\.9 of 2\.0"):
        kv_pool_bytes(QWEN3_0_6B, 2 * GIB)
    # The budget equals weights and activations: no byte is left for KV.
    exact = weight_bytes(QWEN3_0_6B) + GIB
    with pytest.raises(OutOfMemoryError):
        kv_pool_bytes(QWEN3_0_6B, exact, utilization=1.0)
    assert kv_pool_bytes(QWEN3_0_6B, exact + 1, utilization=1.0) == 1


def test_format_bytes_changes_unit_at_one_gib() -> None:
    assert format_bytes(GIB - 1) == "1,024.0 MiB"
    assert format_bytes(GIB) == "1.00 GiB"
    assert format_bytes(1_192_099_840) == "1.11 GiB"


def test_a_step_is_bound_by_bytes_or_by_flops() -> None:
    model, bandwidth, flops = QWEN3_0_6B, H100_80GB.spec_bandwidth, H100_80GB.spec_flops
    decodes = [(1023, 1024)] * 8
    floor = decode_floor_seconds(model, bandwidth, 8, 1024)
    assert step_floor_seconds(model, bandwidth, flops, decodes) == pytest.approx(floor)
    prompt = prefill_floor_seconds(model, flops, 8192)
    found = step_floor_seconds(model, bandwidth, flops, [(0, 8192)])
    assert found == pytest.approx(prompt, rel=1e-3)


def test_chunks_pay_for_short_gaps_with_a_late_first_token() -> None:
    def land(budget: int, **more: int | float) -> ChunkedPrefill:
        given = {"prompt": 1000, "budget": budget, "streams": 4, "context": 100} | more
        return chunked_prefill(QWEN3_0_6B, 3e12, 900e12, **given)  # type: ignore[arg-type]

    whole, half = land(1004), land(504)
    assert (whole.num_steps, half.num_steps, land(104).num_steps) == (1, 2, 10)
    assert whole.gap == whole.ttft
    assert half.gap < whole.gap
    assert half.ttft > whole.ttft
    decodes = step_floor_seconds(QWEN3_0_6B, 3e12, 900e12, [(100, 101)] * 4)
    assert half.undisturbed == whole.undisturbed == decodes
    slow = land(504, overhead=0.5)
    assert slow.ttft == pytest.approx(half.ttft + 1.0)
    assert slow.gap == pytest.approx(half.gap + 0.5)
    assert slow.undisturbed == pytest.approx(half.undisturbed + 0.5)
    assert land(500, streams=0, overhead=1.0).undisturbed == 0.0


def test_streams_may_take_the_whole_budget() -> None:
    with pytest.raises(ConfigError, match="a budget of 4 leaves no token beside 4 streams"):
        chunked_prefill(QWEN3_0_6B, 1.0, 1.0, prompt=10, budget=4, streams=4)
