"""The same four requests through M4 and M5, step by step: who computes how many tokens.

    python m5_chunked/examples/chunked_prefill_demo.py
    python m5_chunked/examples/chunked_prefill_demo.py --budget 16
    python m5_chunked/examples/chunked_prefill_demo.py --svg bars.svg

A and B generate when the long prompt C arrives, with a short one, D, right behind it. A request is
a letter; each line is one step of the engine::

    ab         A and B decode: one token each
    CCCC       13 to 16 tokens of C's prompt: a letter for every four
    abCCCC     both in one step: only M5 does this
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from common.cli_errors import OneLineParser, run
from common.outputs import RequestOutput
from common.plot_style import save_svg
from common.plots import token_bars
from common.request import SamplingParams
from common.step_record import StepRecord
from common.trace import Trace
from m2_batching.step_engine import StepEngine
from m4_flash.engine import LLMEngine as M4Engine
from m5_chunked.engine import LLMEngine as M5Engine

STREAMS = ("The moon", "Water boils at")
LONG = (
    "A ship left the harbour before sunrise. The captain wrote every evening into a book: how far "
    "they had sailed, how the wind had turned, what the crew had seen. On the ninth day they saw "
    "birds, on the tenth a green branch in the water, and on the eleventh a thin blue line that "
    "did not move. Nobody spoke. Then the boy in the mast began to laugh, and all of them laughed "
    "with him. Now tell in one sentence what they had found:"
)
SHORT = "Two plus two is"
ARRIVAL = 4
"""Steps before the long prompt arrives."""
PER_LETTER = 4


def main(argv: list[str]) -> int:
    """Run both engines and draw. Returns the exit code."""
    parser = OneLineParser(description="Token bars per step: prompts whole, and in chunks.")
    parser.add_argument("--model", default="smollm2", help="local folder, hub id, or smollm2")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--budget", type=int, default=32, help="M5's tokens per step")
    parser.add_argument("--max-tokens", type=int, default=16, help="tokens that A and B generate")
    parser.add_argument("--svg", type=Path, help="write M5's token bars to this file")
    parser.add_argument("--smoke", action="store_true", help="fewer tokens")
    args = parser.parse_args(argv)
    if args.budget < 1 or args.max_tokens < 1:
        parser.error("--budget and --max-tokens must be at least 1")
    tokens = 8 if args.smoke else args.max_tokens

    limits = {
        "dtype": "float32", "device": args.device, "max_model_len": 256, "max_num_seqs": 8,
        "num_blocks": 64, "trace": True,
    }  # fmt: skip
    below = M4Engine(args.model, **limits)
    ours = M5Engine(args.model, **limits, max_num_batched_tokens=args.budget)
    answers = [serve(engine, tokens) for engine in (below, ours)]
    for engine, title in ((below, "prompts first, and whole"), (ours, f"{args.budget} tokens")):
        assert engine.trace is not None
        print(f"\n{engine.stage}: {title}")
        print(draw(engine.trace))
    print()
    print(summary(below, ours))
    same = sum(a == b for a, b in zip(*answers, strict=True))
    print(f"{same} of {len(answers[0])} answers have the same tokens in both engines.")
    if args.svg:
        assert ours.trace is not None
        save_svg(
            token_bars(ours.trace), args.svg, title="Token bars of M5",
            desc="Tokens per step: chunks of the long prompt beside the decodes.",
        )  # fmt: skip
        print(f"written: {args.svg}")
    return 0


def serve(engine: StepEngine, tokens: int) -> list[tuple[int, ...]]:
    """Let A and B generate, let C and D arrive after some steps, and step to the end.

    Args:
        engine: An idle one.
        tokens: What A and B generate; C and D give four tokens.

    Returns:
        The ids of the four answers.
    """
    stream = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    late = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    names = [engine.add_request(prompt, stream) for prompt in STREAMS]
    done: dict[str, RequestOutput] = {}
    for step in range(10_000):
        if step == ARRIVAL:
            names += [engine.add_request(prompt, late) for prompt in (LONG, SHORT)]
        done.update({output.request_id: output for output in engine.step()})
        if step >= ARRIVAL and not engine.has_unfinished_requests():
            break
    return [done[name].outputs[0].token_ids for name in names]


def draw(trace: Trace) -> str:
    """One line per step; steps that only decode the same requests share one."""
    lines = []
    for bar, group in groupby(trace, key=lambda step: bar_of(step, trace)):
        steps = list(group)
        first, last = steps[0], steps[-1]
        where = f"{first.index}" if first is last else f"{first.index}-{last.index}"
        lines.append(f"step {where:>5}  {first.num_tokens:>4} tokens  {bar}")
    return "\n".join(lines)


def bar_of(step: StepRecord, trace: Trace) -> str:
    """Decodes in small letters, then prompts: a letter for every four tokens begun."""
    names = {name: chr(ord("A") + at) for at, name in enumerate(trace.requests)}
    bar = ""
    for part in sorted(step.slices, key=lambda item: (item.phase, item.seq_id)):
        letter = names[part.request_id]
        letters = -(-part.num_tokens // PER_LETTER)
        bar += letter.lower() if part.phase == "decode" else letter * letters
    return bar


def summary(below: StepEngine, ours: StepEngine) -> str:
    """What A waits for, and what C waits for, in both engines."""
    assert below.trace is not None
    assert ours.trace is not None
    between = [max(work_between(trace, 0)) for trace in (below.trace, ours.trace)]
    steps = [steps_to_first(trace, 2) for trace in (below.trace, ours.trace)]
    return (
        f"Between two tokens of A, {below.stage} computes up to {between[0]} tokens, "
        f"{ours.stage} up to {between[1]}.\n"
        f"The first token of C takes {steps[0]} step with {below.stage} and {steps[1]} with "
        f"{ours.stage}: its own wait is the price."
    )


def work_between(trace: Trace, seq_id: int) -> list[int]:
    """Tokens that the engine computed from one token of a sequence to its next."""
    found, work, begun = [], 0, False
    for step in trace:
        work += step.num_tokens
        if seq_id in step.sampled:
            found += [work] if begun else []
            work, begun = 0, True
    return found


def steps_to_first(trace: Trace, seq_id: int) -> int:
    """Steps that computed a sequence, up to its first token."""
    return sum(
        part.seq_id == seq_id and part.phase == "prefill" for step in trace for part in step.slices
    )


if __name__ == "__main__":
    run(main)
