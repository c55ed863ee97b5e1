"""How much a GPU has left for KV, by hand; on a real one in ``test_gpu.py``."""

from __future__ import annotations

import pytest

from common.errors import OutOfMemoryError
from m0_init.device_memory import DeviceMemory
from m3_paged.pool_size import PoolSize, left_for_kv

GIB = 2**30


def gpu(total: int, free: int) -> DeviceMemory:
    return DeviceMemory("cuda:0", "a GPU", total * GIB, free * GIB)


def test_total_times_utilization_less_others_less_peak() -> None:
    """Of 80 GiB, 70 are free: 4 of the other 10 are this process's, so 6 belong to others."""
    pool = left_for_kv(gpu(80, 70), 4 * GIB, 3 * GIB, 0.5, 2048)
    reason = (
        "50% of 80.00 GiB less 3.00 GiB for weights and a step of 2048 tokens, "
        "less 6.00 GiB held by others"
    )
    assert pool == PoolSize((40 - 6 - 3) * GIB, reason)


def test_what_this_process_reserved_is_not_counted_twice() -> None:
    """Memory its allocator keeps costs nothing beyond the step's peak."""
    alone = left_for_kv(gpu(80, 80), 0, 3 * GIB, 0.9, 1)
    keeps = left_for_kv(gpu(80, 60), 20 * GIB, 3 * GIB, 0.9, 1)
    assert keeps == alone
    assert alone.num_bytes == 72 * GIB - 3 * GIB


@pytest.mark.parametrize(("peak", "left"), [(34 * GIB - 1, 1), (34 * GIB, 0), (35 * GIB, 0)])
def test_one_byte_is_left_or_nothing(peak: int, left: int) -> None:
    memory = gpu(80, 70)
    if left:
        assert left_for_kv(memory, 4 * GIB, peak, 0.5, 8).num_bytes == left
        return
    message = r"nothing is left for KV: 50% of 80\.00 GiB less 3[45]\.00 GiB for weights"
    with pytest.raises(OutOfMemoryError, match=message):
        left_for_kv(memory, 4 * GIB, peak, 0.5, 8)
