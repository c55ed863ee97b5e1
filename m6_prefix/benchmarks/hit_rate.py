"""Hit rates beside the values computed by hand: few-shot, multi-turn, none shared.

The schedules are the engine's own, run without a model (see ``simulate``), so these are counts and
not measurements: they hold on every device. The formulas know nothing of blocks but their size.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass

from common.request import Sequence
from common.results import Result, Row, make_result, row
from common.workload import Workload, multi_turn_chat, random_lengths, shared_prefix
from m6_prefix.assembly import INDEXES
from m6_prefix.benchmarks import simulate
from m6_prefix.benchmarks.simulate import Answer
from m6_prefix.kv_cache_manager import KVCacheManager

BLOCK_SIZE = 16


@dataclass(frozen=True)
class Case:
    """A workload, and how many tokens of each of its requests must hit.

    Attributes:
        name: ``few_shot``, ``multi_turn`` or ``none_shared``.
        workload: Its requests.
        expected: Hit tokens of each request, by a formula.
        answer: The stub that stands for the model.
    """

    name: str
    workload: Workload
    expected: list[int]
    answer: Answer


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Count hits and evictions with both indexes.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    three = cases(smoke=args.smoke)
    rows = list[Row]()
    for case in three:
        for index in INDEXES:
            rows += case_rows(case, index)
    rows += eviction_rows(three[2].workload)
    rows += pressure_rows(three[0])
    names = ", ".join(f"{case.name}: {case.workload.name}" for case in three)
    result = make_result(
        "m6_prefix", "hit_rate", rows, device="cpu",
        config={"block_size": BLOCK_SIZE, "workloads": names},
        notes=[*notes, "Counts of the real scheduler without a model; the same on every device."],
    )  # fmt: skip
    rates = [
        f"{item['workload']} {item['median']:.1%}"
        for item in result.select(metric="hit_rate", index="hash", pool="roomy")
    ]
    wrong = sum(item["median"] for item in result.select(metric="requests_off_formula"))
    return result, f"m6_prefix: {', '.join(rates)} hit; {wrong:.0f} requests off the formula"


def cases(*, smoke: bool) -> tuple[Case, Case, Case]:
    """The three workloads."""
    if smoke:
        few = few_shot(6, 40, 5, num_prefixes=2)
        return few, multi_turn(2, 3, 20, 10, 30), none_shared(4, (20, 40), (2, 20))
    few = few_shot(256, 1000, 50, num_prefixes=4)
    return few, multi_turn(16, 8, 100, 40, 120), none_shared(256, (100, 1024), (16, 64))


def few_shot(count: int, prefix_len: int, suffix_len: int, num_prefixes: int) -> Case:
    """Examples, then a question: the first of each prefix finds nothing, the others all of it."""
    workload = shared_prefix(count, prefix_len, suffix_len, 16, num_prefixes=num_prefixes)
    later = whole_blocks(prefix_len)
    expected = [0 if number < num_prefixes else later for number in range(count)]
    return Case("few_shot", workload, expected, lambda _: 0)


def multi_turn(conversations: int, turns: int, system: int, user: int, reply: int) -> Case:
    """Chats: a turn finds the turn before it, its reply included but for the last token.

    That token was sampled and never computed. The stub answers what the next turn will quote.
    """
    workload = multi_turn_chat(
        conversations, turns, system_len=system, user_len=user, reply_len=reply, think_time=1.0
    )
    expected = []
    for turn in range(turns):
        known = system + turn * (user + reply) - 1 if turn else system
        for number in range(conversations):
            alone = turn == 0 and number == 0
            expected.append(0 if alone else whole_blocks(known))
    prompts = workload.prompts

    def quoted(sequence: Sequence) -> int:
        following = sequence.seq_id + conversations
        return prompts[following][sequence.num_tokens] if following < len(prompts) else 0

    return Case("multi_turn", workload, expected, quoted)


def none_shared(count: int, prompts: tuple[int, int], outputs: tuple[int, int]) -> Case:
    """Random prompts: nobody finds anything."""
    workload = random_lengths(count, prompts, outputs, temperature=0.0)
    return Case("none_shared", workload, [0] * count, lambda _: 0)


def whole_blocks(num_tokens: int) -> int:
    """Tokens of the full blocks among the first ``num_tokens``."""
    return num_tokens // BLOCK_SIZE * BLOCK_SIZE


def case_rows(case: Case, index: str) -> list[Row]:
    """Serve a case with room for everything; counts beside the formula's."""
    manager = KVCacheManager(room_for(case.workload), BLOCK_SIZE, index=INDEXES[index]())
    served = simulate.serve(case.workload, manager, case.answer)
    stats = manager.stats()
    expected, queried = sum(case.expected), case.workload.prompt_tokens
    off = sum(hit != wanted for hit, wanted in zip(served.hits, case.expected, strict=True))
    labels = {"workload": case.name, "index": index, "pool": "roomy"}
    return [
        row("queried_tokens", "tokens", float(stats.queried_tokens), **labels),
        row("hit_tokens", "tokens", float(stats.hit_tokens), **labels),
        row("expected_hit_tokens", "tokens", float(expected), **labels),
        row("hit_rate", "share", stats.hit_rate, **labels),
        row("expected_hit_rate", "share", expected / queried, **labels),
        row("requests_off_formula", "count", float(off), **labels),
        row("computed_tokens", "tokens", float(served.computed), **labels),
        row("evicted_blocks", "count", float(stats.evicted_blocks), **labels),
        row("steps", "count", float(served.steps), **labels),
    ]


def room_for(workload: Workload) -> int:
    """Blocks that no workload of that size fills, even if nothing is shared."""
    tokens = workload.prompt_tokens + workload.max_output_tokens
    return tokens // BLOCK_SIZE + len(workload.requests)


def eviction_rows(workload: Workload) -> list[Row]:
    """Nothing shared, one request at a time, pools too small to keep everything."""
    rows = list[Row]()
    whole = room_for(workload)
    longest = max(_blocks_of(item) for item in _lengths(workload))
    for num_blocks in (max(whole // 2, longest), max(whole // 8, longest)):
        manager = KVCacheManager(num_blocks, BLOCK_SIZE)
        simulate.serve(workload, manager, lambda _: 0, max_num_seqs=1)
        labels = {"workload": "none_shared", "index": "hash", "pool": f"{num_blocks} blocks"}
        counted, expected = manager.stats().evicted_blocks, expected_evictions(workload, num_blocks)
        rows.append(row("evicted_blocks", "count", float(counted), **labels))
        rows.append(row("expected_evicted_blocks", "count", float(expected), **labels))
    return rows


def expected_evictions(workload: Workload, num_blocks: int) -> int:
    """Blocks that must lose their content when requests that share nothing run one by one.

    A request of n tokens (the last is never computed) fills ``(n − 1) // 16`` blocks, which stay
    cached, and perhaps begins one that does not. It takes blank blocks first.
    """
    cached = evicted = 0
    for tokens in _lengths(workload):
        lost = max(_blocks_of(tokens) - (num_blocks - cached), 0)
        evicted += lost
        cached += (tokens - 1) // BLOCK_SIZE - lost
    return evicted


def _lengths(workload: Workload) -> list[int]:
    """Prompt and output tokens of each request."""
    return [
        len(item.prompt_token_ids) + item.sampling_params.max_tokens for item in workload.requests
    ]


def _blocks_of(tokens: int) -> int:
    """Blocks of the computed tokens: all but the last one."""
    return -(-(tokens - 1) // BLOCK_SIZE)


def pressure_rows(case: Case) -> list[Row]:
    """The few-shot workload, one request at a time, in pools that hold ever fewer prefixes.

    Requests take turns on the prefixes. That is the worst order for an LRU: where one prefix too
    many is asked for, each is evicted just before it is needed.
    """
    rows = list[Row]()
    needed = max(_blocks_of(tokens) for tokens in _lengths(case.workload))
    for requests_at_home in (1.0, 2.0, 4.0, 8.0):
        num_blocks = int(needed * requests_at_home)
        manager = KVCacheManager(num_blocks, BLOCK_SIZE)
        simulate.serve(case.workload, manager, case.answer, max_num_seqs=1)
        labels = {"workload": case.name, "index": "hash", "pool": f"{num_blocks} blocks"}
        stats = manager.stats()
        rows.append(row("hit_rate", "share", stats.hit_rate, **labels))
        rows.append(row("evicted_blocks", "count", float(stats.evicted_blocks), **labels))
    return rows
