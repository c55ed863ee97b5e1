"""Answer several questions one after the other with M1, then together with M2.

    python m2_batching/examples/batch_inference.py
    python m2_batching/examples/batch_inference.py --slots 2 --max-tokens 64

Prints the answers, counts how many are the same tokens in both engines, and compares steps and
speed. In float32 all of them are, unless two tokens are so close that the order of a sum decides.
"""

from __future__ import annotations

import time

from common.cli_errors import OneLineParser, run
from common.devices import format_bytes
from common.outputs import RequestOutput
from common.request import SamplingParams
from m1_basic.engine import LLMEngine as M1Engine
from m2_batching.engine import LLMEngine as M2Engine

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Why is the sky blue?",
    "Write a sentence about a cat.",
    "What is two plus two?",
    "How do I boil an egg?",
    "Who wrote Hamlet?",
    "What does a plumber do?",
)


def main(argv: list[str]) -> int:
    """Serve the same questions twice. Returns the exit code."""
    parser = OneLineParser(description="The same questions, one by one and as a batch.")
    parser.add_argument("--model", default="smollm2", help="local folder, hub id, or smollm2")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--slots", type=int, default=8, help="sequences that run together")
    parser.add_argument("--max-tokens", type=int, default=32, help="output tokens at most")
    parser.add_argument("--smoke", action="store_true", help="fewer questions, shorter answers")
    args = parser.parse_args(argv)
    questions = QUESTIONS[:3] if args.smoke else QUESTIONS
    params = SamplingParams(temperature=0, max_tokens=6 if args.smoke else args.max_tokens)
    limits = {"device": args.device, "dtype": "float32", "max_model_len": 256}
    engines: dict[str, M1Engine | M2Engine] = {
        "m1_basic, one by one": M1Engine(args.model, **limits),
        "m2_batching, together": M2Engine(args.model, **limits, max_num_seqs=args.slots),
    }
    answers = {name: serve(name, engine, questions, params) for name, engine in engines.items()}
    one_by_one, together = answers.values()
    print()
    for question, output in zip(questions, together, strict=True):
        print(f"{question}\n   {output.outputs[0].text.strip()!r}")
    same = sum(a == b for a, b in zip(ids(one_by_one), ids(together), strict=True))
    print(f"\n{same} of {len(questions)} answers have the same tokens in both engines.")
    return 0


def serve(
    name: str, engine: M1Engine | M2Engine, questions: tuple[str, ...], params: SamplingParams
) -> list[RequestOutput]:
    """Answer all questions, and print what it took."""
    chats = [[{"role": "user", "content": question}] for question in questions]
    start = time.perf_counter()
    outputs = engine.generate(chats, params)
    seconds = time.perf_counter() - start
    stats = engine.stats()
    print(
        f"{name}: {stats.generated_tokens} tokens in {stats.num_steps} steps, "
        f"{stats.generated_tokens / seconds:.1f} tok/s, "
        f"{format_bytes(stats.kv_bytes)} reserved for K and V"
    )
    return outputs


def ids(outputs: list[RequestOutput]) -> list[tuple[int, ...]]:
    """The generated ids of each request."""
    return [output.outputs[0].token_ids for output in outputs]


if __name__ == "__main__":
    run(main)
