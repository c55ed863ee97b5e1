"""What the ladder serves, and how much KV memory each of its stages is given for it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.model_config import ModelConfig
from common.qwen3 import QWEN3_0_6B
from common.serve import run_batch
from common.workload import Workload, fixed
from m2_batching.tests.bench_runs import write_wide_model
from m3_paged.benchmarks.simulate import block_scheduler
from m4_flash.tests.bench_runs import bench_args
from m6_prefix.benchmarks.engines import BUDGET
from m6_prefix.benchmarks.simulate import make_scheduler
from m6_prefix.engine import LLMEngine as M6Engine
from m6_prefix.hash_index import HashIndex
from m6_prefix.kv_cache_manager import KVCacheManager
from m7_gptq.benchmarks import ladder_rungs
from m7_gptq.benchmarks.ladder_rungs import EIGHT_BIT_HEAD, FOUR_BITS, Sizes, sizes
from m7_gptq.benchmarks.rounded import spec_of

SIZE = sizes(Namespace(smoke=True))
STAGES = ["m1_basic", "m2_batching", "m3_paged", "m4_flash", "m5_chunked", "m6_prefix", "m7_gptq"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide_model(tmp_path_factory.mktemp("wide"))


@pytest.mark.parametrize(
    ("device", "requests", "few", "system"), [("cuda", 64, 4, 256), ("cpu", 12, 12, 64)]
)
def test_everybody_begins_alike(device: str, requests: int, few: int, system: int) -> None:
    size = sizes(Namespace(smoke=False, device=device))
    assert (size.seats, size.few) == (requests, few)
    assert len(size.served_by("m1_basic").requests) == few
    assert size.served_by("m2_batching") is size.workload
    prompts = size.workload.prompts
    assert len({tuple(prompt[:system]) for prompt in prompts}) == 1
    assert len({tuple(prompt[system:]) for prompt in prompts}) == requests
    for item in (*size.workload.requests, *size.stream.requests, *size.warm_up.requests):
        tokens = len(item.prompt_token_ids) + item.sampling_params.max_tokens
        assert tokens <= size.max_model_len
        assert item.arrival == 0.0
        assert item.sampling_params.ignore_eos
    assert size.short_stream.prompts == size.stream.prompts


@pytest.mark.parametrize("lookahead", [0, 1])
def test_a_pool_is_as_large_as_the_engine_needs(model: Path, lookahead: int) -> None:
    """By the engine's own count, with either loop; the pool of M3 holds what M5's does."""
    places = ladder_rungs.chunked_pool(SIZE, 16, lookahead, sharing=True)
    engine = M6Engine(
        model, device="cpu", max_model_len=46, max_num_seqs=4, num_blocks=places // 16,
        overlap=bool(lookahead),
    )  # fmt: skip
    pool, most = engine.manager.pool, [0]
    allocate: Callable[[int], Any] = pool.allocate

    def watched(count: int) -> Any:
        taken = allocate(count)
        most.append(pool.num_blocks - pool.num_free)
        return taken

    pool.allocate = watched  # type: ignore[method-assign]
    run_batch(engine, SIZE.workload)
    assert max(most) == pool.num_blocks
    assert engine.scheduler.num_preemptions == 0
    alone = ladder_rungs.chunked_pool(SIZE, 16, lookahead, sharing=False)
    assert alone == ladder_rungs.table_pool(SIZE, 16) == 4 * 48


def test_a_pool_shrinks_as_sequences_end() -> None:
    """Two requests of one block, of which one is gone before the other needs its second."""
    workload = Workload("two", 0, tuple(
        fixed(1, length, count).requests[0] for length, count in ((4, 1), (7, 4))
    ))  # fmt: skip
    size = Sizes(workload, 1, workload.subset(1), 16, 1.0)
    assert ladder_rungs.table_pool(size, 8) == 2 * 8
    assert ladder_rungs.chunked_pool(size, 8, 1, sharing=False) == 2 * 8


def test_the_group_size_fits_every_layer(model: Path) -> None:
    assert spec_of(ModelConfig.from_pretrained(model)).group_size == 32
    assert spec_of(QWEN3_0_6B).group_size == 128


def test_rungs_of_a_gpu_end_with_the_fused_forms(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is built; our kernels, and a loop that plans one step ahead."""
    args = bench_args(model)
    args.device = "cuda"
    seen: list[int] = []
    pool = ladder_rungs.chunked_pool

    def watched(size: Sizes, block: int, lookahead: int, *, sharing: bool) -> int:
        seen.append(lookahead)
        return pool(size, block, lookahead, sharing=sharing)

    monkeypatch.setattr(ladder_rungs, "chunked_pool", watched)
    found = ladder_rungs.rungs(args, SIZE)
    assert [item.stage for item in found] == [*STAGES, "m7_gptq"]
    assert [item.weights for item in found][-3:] == ["float32", FOUR_BITS, EIGHT_BIT_HEAD]
    assert seen == [1, 1]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nobody_waits_for_the_pool(device: str) -> None:
    """Over a pool of that size the schedules own as many blocks, and preempt nobody."""
    size = sizes(Namespace(smoke=False, device=device))
    blocks = ladder_rungs.table_pool(size, 16) // 16
    tables = block_scheduler(blocks, 16, size.max_model_len, BUDGET, size.seats)
    assert ladder_rungs.peak_blocks(tables, tables.manager, size.workload) == blocks
    assert tables.num_preemptions == 0
    for sharing, lookahead in ((False, 0), (False, 1), (True, 0), (True, 1)):
        blocks = ladder_rungs.chunked_pool(size, 16, lookahead, sharing=sharing) // 16
        manager = KVCacheManager(
            blocks, 16, enable_prefix_caching=sharing, index=HashIndex()
        )  # fmt: skip
        chunked = make_scheduler(manager, size.seats, BUDGET)
        assert ladder_rungs.peak_blocks(chunked, manager, size.workload, lookahead) == blocks
        assert chunked.num_preemptions == 0
