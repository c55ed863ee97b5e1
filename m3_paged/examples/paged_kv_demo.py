"""The same requests through M2 and M3 at equal KV memory, the memory drawn after each step.

    python m3_paged/examples/paged_kv_demo.py
    python m3_paged/examples/paged_kv_demo.py --num-requests 12 --every 1
    python m3_paged/examples/paged_kv_demo.py --svg memory.svg

Both engines get the same bytes for K and V: M2 as slots of ``max_model_len`` places, M3 as blocks.
A request is a letter. Every cell of the map is one block, or the part of a slot of that size::

    A█  full        A▃  partly filled      A·  reserved, empty       ·  free
    +█  shared by several samples of one request
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.cli_errors import OneLineParser, run
from common.plot_style import save_svg
from common.plots import block_map
from common.request import SamplingParams
from common.trace import Trace
from common.trace_replay import state_after
from m2_batching.engine import LLMEngine as SlotEngine
from m2_batching.step_engine import StepEngine
from m3_paged.engine import LLMEngine as BlockEngine

SLOTS, MAX_MODEL_LEN, BLOCK_SIZE = 4, 64, 8
NUM_BLOCKS = SLOTS * MAX_MODEL_LEN // BLOCK_SIZE
PROMPTS = (
    "The moon",
    "A list of three fruits that are red when they are ripe:",
    "Water boils at",
    "In the year 1969 two people walked",
    "My favourite colour is",
    "The opposite of north is",
    "Once upon a time in a small house at the edge of a forest",
    "Two plus two",
)
LEVELS = "▁▂▃▄▅▆▇█"


def main(argv: list[str]) -> int:
    """Run both engines and draw. Returns the exit code."""
    parser = OneLineParser(description="Slots against blocks at equal KV memory.")
    parser.add_argument("--model", default="smollm2", help="local folder, hub id, or smollm2")
    parser.add_argument("--num-requests", type=int, default=8, help="how many, at least 1")
    parser.add_argument("--every", type=int, default=8, help="draw after every N-th step")
    parser.add_argument("--svg", type=Path, help="write M3's fullest map to this file")
    parser.add_argument("--smoke", action="store_true", help="fewer tokens, fewer drawings")
    args = parser.parse_args(argv)
    if args.num_requests < 1 or args.every < 1:
        parser.error("--num-requests and --every must be at least 1")
    every = 100 if args.smoke else args.every
    limit = 6 if args.smoke else 40

    slots = SlotEngine(args.model, max_model_len=MAX_MODEL_LEN, max_num_seqs=SLOTS, trace=True)
    blocks = BlockEngine(
        args.model, max_model_len=MAX_MODEL_LEN, max_num_seqs=32, trace=True,
        block_size=BLOCK_SIZE, num_blocks=NUM_BLOCKS,
    )  # fmt: skip
    print(f"{slots.kv_bytes() / 2**20:.1f} MiB of KV: {SLOTS} slots of {MAX_MODEL_LEN} places, or")
    print(f"{blocks.kv_bytes() / 2**20:.1f} MiB of KV: {NUM_BLOCKS} blocks of {BLOCK_SIZE} places")
    steps = [serve(engine, args.num_requests, limit, every) for engine in (slots, blocks)]
    print(f"\nM2 took {steps[0]} steps, M3 {steps[1]}")
    if args.svg:
        trace = blocks.trace
        assert trace is not None
        save_svg(
            block_map(trace, fullest_step(trace)), args.svg,
            title="Memory map of M3", desc="Which request owns each KV block at the fullest step.",
        )  # fmt: skip
        print(f"written: {args.svg}")
    return 0


def serve(engine: StepEngine, num_requests: int, limit: int, every: int) -> int:
    """Queue the requests, step until all are done, draw on the way. Returns the steps it took.

    Args:
        engine: With ``trace=True``.
        num_requests: How many; request i gives up to ``limit`` tokens, unequally many.
        limit: Most tokens of an answer.
        every: Draw after every so many steps.
    """
    for number in range(num_requests):
        params = SamplingParams(
            max_tokens=max(2, limit * (number * 5 % 8 + 1) // 8), ignore_eos=True, seed=number,
            n=3 if number == 1 else 1,
        )  # fmt: skip
        engine.add_request(PROMPTS[number % len(PROMPTS)], params)
    trace = engine.trace
    assert trace is not None
    print(f"\n{engine.stage}")
    while engine.has_unfinished_requests():
        engine.step()
        index = len(trace) - 1
        if index % every == min(2, every - 1):
            print(memory_text(trace, index))
    return len(trace)


def memory_text(trace: Trace, step: int) -> str:
    """The memory after ``step``: one line of counts, then a row of cells per 8 blocks or slot."""
    state, record = state_after(trace, step), trace[step]
    size, total = trace.info.block_size, trace.info.num_blocks
    assert size is not None
    assert total is not None
    letters = {name: chr(ord("A") + at % 26) for at, name in enumerate(trace.requests)}
    cells_per_unit = size // BLOCK_SIZE  # a slot is drawn as several cells
    cells = [" · "] * (total * cells_per_unit)
    for seq_id, table in state.blocks.tables.items():
        for place, unit in enumerate(table):
            tokens = state.num_computed.get(seq_id, 0) - place * size
            shared = len(state.blocks.owners[unit]) > 1
            letter = "+" if shared else letters[trace.sequences[seq_id].request_id]
            for part in range(cells_per_unit):
                cells[unit * cells_per_unit + part] = letter + fill_mark(tokens - part * BLOCK_SIZE)
    stored = stored_places(state.blocks.tables, state.num_computed, size)
    head = (
        f"step {step:2}: {len(record.running_after):2} run, {len(record.waiting_after):2} wait, "
        f"{stored:3} of {total * size} places hold a token"
    )
    rows = ("  ".join(f"{c:3}" for c in cells[i : i + 8]) for i in range(0, len(cells), 8))
    return "\n".join([head, *(f"   {row}".rstrip() for row in rows)])


def stored_places(tables: dict[int, list[int]], num_computed: dict[int, int], size: int) -> int:
    """Places that hold a token; a block that several sequences share counts once."""
    stored: dict[int, int] = {}
    for seq_id, table in tables.items():
        for place, unit in enumerate(table):
            tokens = min(max(num_computed.get(seq_id, 0) - place * size, 0), size)
            stored[unit] = max(stored.get(unit, 0), tokens)
    return sum(stored.values())


def fill_mark(tokens: int) -> str:
    """How full a cell is with ``tokens`` or more than fit."""
    if tokens <= 0:
        return "·"
    return LEVELS[min(tokens, BLOCK_SIZE) * len(LEVELS) // BLOCK_SIZE - 1]


def fullest_step(trace: Trace) -> int:
    """Index of the step after which most blocks were owned."""
    counts: Sequence[int] = [len(state_after(trace, i).blocks.owners) for i in range(len(trace))]
    return counts.index(max(counts))


if __name__ == "__main__":
    run(main)
