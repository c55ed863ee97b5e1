"""A long prompt with one sentence that matters: time to the first token, memory, the answer.

    python m4_flash/examples/long_context.py
    python m4_flash/examples/long_context.py --model Qwen/Qwen3-0.6B --device cuda
    python m4_flash/examples/long_context.py --lengths 1024 4096 --backend naive

The prompt repeats plain sentences and hides a password in the middle of them; the question at its
end asks for it. 2,048 tokens on a CPU, 8,192 and 32,768 on a GPU. Without a tokenizer (the random
stand-in for Qwen3-0.6B) the prompt is random ids and the answer means nothing.
"""

from __future__ import annotations

import random

from common.cli_errors import OneLineParser, run
from common.devices import format_bytes
from common.memory import PeakMemory
from common.random_model import RANDOM_MODEL
from common.request import SamplingParams
from m0_init.loader import resolve_device
from m4_flash import LLMEngine

FILLER = (
    "The river runs past the mill and under the bridge. ",
    "In the evening the lamps along the street are lit one by one. ",
    "A cart with apples stands in front of the house. ",
    "The baker opens his shop before the sun is up. ",
)
FACT = "Remember this: the password is BLUE HERON. "
QUESTION = "\nQuestion: What is the password?\nAnswer: The password is"


def main(argv: list[str]) -> int:
    """Serve each length. Returns the exit code."""
    parser = OneLineParser(description="Long prompts through the M4 engine.")
    parser.add_argument("--model", help=f"default: smollm2, on a GPU {RANDOM_MODEL}")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--backend", default="auto", help="attention backend")
    parser.add_argument("--lengths", type=int, nargs="+", help="prompt lengths in tokens")
    parser.add_argument("--max-tokens", type=int, default=8, help="tokens of the answer")
    parser.add_argument("--smoke", action="store_true", help="one short prompt")
    args = parser.parse_args(argv)
    device = str(resolve_device(args.device))
    gpu = device.startswith("cuda")
    model = args.model or (RANDOM_MODEL if gpu else "smollm2")
    lengths = args.lengths or ([128] if args.smoke else [8192, 32768] if gpu else [2048])
    if min(lengths) < 64 or args.max_tokens < 1:
        parser.error("--lengths must be at least 64, --max-tokens at least 1")
    longest = max(lengths) + args.max_tokens
    engine = LLMEngine(
        model, device=device, attention_backend=args.backend, max_model_len=longest,
        max_num_seqs=1,  # so the pool holds one such sequence
    )  # fmt: skip
    stats, backend = engine.stats(), engine.runner.backend.name
    print(f"{model} on {device}, attention backend {backend}")
    print(
        f"weights {format_bytes(stats.weight_bytes)}, "
        f"KV pool {format_bytes(stats.kv_bytes)} for {longest:,} tokens"
    )
    for length in lengths:
        serve(engine, length, args.max_tokens, device)
    return 0


def serve(engine: LLMEngine, length: int, max_tokens: int, device: str) -> None:
    """One prompt of ``length`` tokens, twice: the first run's memory, the second run's time."""
    prompt = prompt_ids(engine, length)
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    with PeakMemory(device) as watch:
        engine.generate([prompt], SamplingParams(temperature=0, max_tokens=1))
    [output] = engine.generate([prompt], params)
    ttft = output.metrics.ttft
    assert ttft is not None  # None only while there is no token yet
    answer = output.outputs[0]
    shown = repr(answer.text) if engine.tokenizer is not None else f"ids {answer.token_ids}"
    print(f"\n{len(prompt):,} prompt tokens")
    print(f"   first token after {ttft:.3f} s, {len(prompt) / ttft:,.0f} prompt tokens per second")
    # A CPU's memory is sampled, and what loading has freed is used again without being seen.
    bound = "" if device.startswith("cuda") else "at least "
    print(f"   memory on top of weights and KV pool: {bound}{format_bytes(watch.result.growth)}")
    print(f"   answer: {shown}")


def prompt_ids(engine: LLMEngine, length: int) -> list[int]:
    """Exactly ``length`` ids: filler, the fact in the middle, filler, the question."""
    rng, tokenizer = random.Random(0), engine.tokenizer
    if tokenizer is None:
        return [rng.randrange(engine.model.config.vocab_size) for _ in range(length)]
    fact, question = (tokenizer.encode(text, False) for text in (FACT, QUESTION))
    room = length - len(fact) - len(question)
    filler = list[int]()
    while len(filler) < room:
        filler += tokenizer.encode(rng.choice(FILLER), False)
    middle = room // 2
    return [*filler[:middle], *fact, *filler[middle:room], *question]


if __name__ == "__main__":
    run(main)
