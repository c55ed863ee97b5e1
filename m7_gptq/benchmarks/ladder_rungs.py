"""What the ladder serves, and the engines that serve it: one rung per stage, at its best settings.

Memory is reserved as each stage does it: M1 and M2 keep a place for every token of the longest
sequence and of every seat, later stages a pool of blocks. The pool holds as many as are owned at
most when nobody has to wait for one. How many that is, the stage's own scheduler says in a run
without a model: with ``ignore_eos`` a schedule depends on lengths and equal tokens alone.
"""

from __future__ import annotations

from argparse import Namespace
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from common.request import Request, Sequence
from common.workload import Workload, fixed, random_lengths
from m1_basic.engine import LLMEngine as M1Engine
from m2_batching.engine import LLMEngine as M2Engine
from m2_batching.plan import SchedulerOutput, StepResult
from m2_batching.step_engine import StepEngine
from m2_batching.step_interfaces import StepScheduler
from m3_paged.benchmarks.simulate import block_scheduler
from m3_paged.engine import DEFAULT_BLOCK_SIZE
from m3_paged.kv_cache_manager import KVCacheManager as TableManager
from m4_flash.backends.select import BACKENDS
from m4_flash.benchmarks.engines import m3_engine, m4_engine, model_of
from m5_chunked.engine import LLMEngine as M5Engine
from m6_prefix.benchmarks.engines import BUDGET, backend, options
from m6_prefix.benchmarks.simulate import make_scheduler
from m6_prefix.engine import LLMEngine as M6Engine
from m6_prefix.hash_index import HashIndex
from m6_prefix.kv_cache_manager import KVCacheManager as SharingManager
from m7_gptq.benchmarks.rounded import RoundedEngine
from m7_gptq.engine import LLMEngine as M7Engine

FIRST, LAST = "m1_basic", "m7_gptq"
FOUR_BITS = "4-bit"
EIGHT_BIT_HEAD = "4-bit + 8-bit head"

Engine = M1Engine | StepEngine
Labels = dict[str, str | int]


@dataclass(frozen=True)
class Sizes:
    """The one workload, and the one stream.

    Attributes:
        workload: What M2 and every later stage serve.
        few: Requests that M1 serves, the first of them.
        stream: One request, whose time per token is taken.
        max_model_len: Longest sequence that may come: what a seat of M1 and M2 reserves.
        slow: Seconds of a round from which on it is run once.
    """

    workload: Workload
    few: int
    stream: Workload
    max_model_len: int
    slow: float

    @property
    def seats(self) -> int:
        """Sequences at a time: all of them."""
        return len(self.workload.requests)

    def served_by(self, stage: str) -> Workload:
        """The requests of one stage."""
        return self.workload.subset(self.few) if stage == FIRST else self.workload

    @property
    def warm_up(self) -> Workload:
        """Two prompts, on a GPU longer together than a graph takes, so that everything compiles."""
        return fixed(2, min(600, self.max_model_len // 2), 4)

    @property
    def short_stream(self) -> Workload:
        """The stream's prompt with three tokens."""
        return fixed(1, self.stream.prompt_tokens, 3)


def sizes(args: Namespace) -> Sizes:
    """Workload and stream of the size that was asked for."""
    if args.smoke:
        some = random_lengths(4, (4, 8), (2, 6), temperature=0.0)
        return Sizes(with_system_prompt(some, 32), 2, fixed(1, 16, 4), 46, 8.0)
    if args.device.startswith("cuda"):
        many = random_lengths(64, (64, 768), (64, 256), temperature=0.0)
        return Sizes(with_system_prompt(many, 256), 4, fixed(1, 512, 64), 1280, 5.0)
    some = random_lengths(12, (16, 128), (16, 48), temperature=0.0)
    return Sizes(with_system_prompt(some, 64), 12, fixed(1, 128, 32), 240, 15.0)


def with_system_prompt(workload: Workload, length: int) -> Workload:
    """The same requests behind ``length`` ids that all of them share."""
    (system,) = fixed(1, length, 1, seed=workload.seed + 1).prompts
    requests = tuple(
        replace(item, prompt_token_ids=(*system, *item.prompt_token_ids))
        for item in workload.requests
    )
    return Workload(f"system-{length}+{workload.name}", workload.seed, requests)


@dataclass(frozen=True)
class Rung:
    """One stage as it serves the workload.

    Attributes:
        stage: Its package.
        weights: How the linear layers are stored: the model's dtype, or bits.
        make: Builds the engine.
    """

    stage: str
    weights: str
    make: Callable[[], Engine]


def rungs(args: Namespace, size: Sizes) -> list[Rung]:
    """Every stage from M1 on, in order; M7 last, as it is used on the device.

    Args:
        args: The benchmark's command line.
        size: What will be served.
    """
    gpu, dense, name = args.device.startswith("cuda"), model_of(args)[1], backend(args)
    block_size = BACKENDS[name].default_block_size
    limits: dict[str, Any] = {"max_model_len": size.max_model_len, "max_num_seqs": size.seats}
    one = {"dtype": args.dtype, "device": args.device, "max_model_len": size.max_model_len}
    ahead = 1 if gpu else 0  # M5's loop is overlapped where there is a device to overlap with
    m5 = options(args, **limits, pool_tokens=chunked_pool(size, block_size, ahead, sharing=False))
    m6 = options(args, **limits, pool_tokens=chunked_pool(size, block_size, ahead, sharing=True))
    pool = {block: table_pool(size, block) for block in (DEFAULT_BLOCK_SIZE, block_size)}
    found = [
        Rung(FIRST, dense, partial(M1Engine, args.model, **one)),
        Rung("m2_batching", dense, partial(M2Engine, args.model, **one, max_num_seqs=size.seats)),
        Rung(
            "m3_paged", dense,
            partial(m3_engine, args, **limits, pool_tokens=pool[DEFAULT_BLOCK_SIZE]),
        ),
        Rung(
            "m4_flash", dense,
            partial(m4_engine, args, name, **limits, pool_tokens=pool[block_size]),
        ),
        Rung("m5_chunked", dense, partial(M5Engine, args.model, **m5)),
        Rung("m6_prefix", dense, partial(M6Engine, args.model, **m6)),
    ]  # fmt: skip
    four = partial(RoundedEngine, args.model, **m6)
    if gpu:
        return [*found, Rung(LAST, FOUR_BITS, four),
                Rung(LAST, EIGHT_BIT_HEAD, partial(four, head_bits=8))]  # fmt: skip
    return [*found, Rung(LAST, dense, partial(M7Engine, args.model, **m6)),
            Rung(LAST, FOUR_BITS, four)]  # fmt: skip


def table_pool(size: Sizes, block_size: int) -> int:
    """Places that M3 and M4 need for the workload: whole prompts first, then everybody decodes."""
    blocks = size.seats * -(-size.max_model_len // block_size)
    scheduler = block_scheduler(blocks, block_size, size.max_model_len, BUDGET, size.seats)
    return block_size * peak_blocks(scheduler, scheduler.manager, size.workload)


def chunked_pool(size: Sizes, block_size: int, lookahead: int, *, sharing: bool) -> int:
    """Places that M5, or with ``sharing`` M6, needs for the workload.

    Args:
        size: What will be served.
        block_size: Tokens per block.
        lookahead: Steps that the loop plans ahead.
        sharing: Whether equal prefixes share blocks.
    """
    blocks = size.seats * -(-size.max_model_len // block_size)
    manager = SharingManager(
        blocks, block_size, enable_prefix_caching=sharing, index=HashIndex()
    )  # fmt: skip
    scheduler = make_scheduler(manager, size.seats, BUDGET)
    return block_size * peak_blocks(scheduler, manager, size.workload, lookahead)


def peak_blocks(
    scheduler: StepScheduler,
    manager: TableManager | SharingManager,
    workload: Workload,
    lookahead: int = 0,
) -> int:
    """Most blocks that are owned at the same time while everybody is served, without a model.

    Args:
        scheduler: Idle, over a pool that is large enough for all.
        manager: Its blocks.
        workload: The requests, all there from the start.
        lookahead: Steps that are planned before an earlier one's ids are known.
    """
    for number, item in enumerate(workload.requests):
        request = Request(str(number), item.prompt_token_ids, item.sampling_params)
        scheduler.add([Sequence(number, request)])
    flights, peak, pool = deque[SchedulerOutput](), 0, manager.pool
    while scheduler.has_unfinished():
        plan = scheduler.schedule()
        peak = max(peak, pool.num_blocks - pool.num_free)
        if plan.scheduled:
            flights.append(plan)
        while len(flights) > (lookahead if plan.scheduled else 0):
            landed = flights.popleft()
            tokens = {item.seq_id: 0 for item in landed.scheduled if item.num_sampled}
            scheduler.update(landed, StepResult(tokens), 0.0)
    return peak
