"""A first program with the M1 engine: complete, sample, stream, chat, and see what it cost.

python m1_basic/examples/basic_inference.py
python m1_basic/examples/basic_inference.py --model Qwen/Qwen3-0.6B --device cuda
"""

from __future__ import annotations

from common.cli_errors import OneLineParser, run
from common.outputs import EngineStats, RequestOutput
from m1_basic import LLMEngine, SamplingParams


def main(argv: list[str]) -> int:
    """Run the five parts. Returns the exit code."""
    parser = OneLineParser(description="A first program with the M1 engine.")
    parser.add_argument("--model", default="smollm2", help="local folder, hub id, or smollm2")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--smoke", action="store_true", help="shorter answers")
    args = parser.parse_args(argv)
    tokens = 6 if args.smoke else 40

    # Weights are read and the KV cache is reserved here, once for all requests.
    engine = LLMEngine(args.model, device=args.device, max_model_len=1024)

    print("1. Greedy: the likeliest token every time")
    greedy = SamplingParams(temperature=0, max_tokens=tokens)
    prompts = ["The capital of France is", "def fibonacci(n):\n"]
    for prompt, output in zip(prompts, engine.generate(prompts, greedy), strict=True):
        print(f"   {prompt!r} → {output.outputs[0].text!r}")

    print("\n2. Sampled: a seed repeats, another one differs")
    for seed in (1, 1, 2):
        params = SamplingParams(temperature=0.8, top_p=0.95, seed=seed, max_tokens=tokens)
        [output] = engine.generate(["Once upon a time"], params)
        print(f"   seed {seed}: {output.outputs[0].text!r}")

    print("\n3. Streamed: every token as it comes")
    last = stream(engine, "Large language models are", greedy)
    print(f"   {describe(last)}")

    print("\n4. Chat: the model sees the conversation so far")
    chat(engine, ["Name a fruit.", "What colour is it?"], greedy)

    print("\n5. What it cost")
    print_stats(engine.stats())
    return 0


def stream(engine: LLMEngine, prompt: str, params: SamplingParams) -> RequestOutput:
    """Print an answer while it grows; returns its last state."""
    print(f"   {prompt}", end="", flush=True)
    shown = 0
    for output in engine.stream(prompt, params):
        text = output.outputs[0].text  # all of it so far; it never changes, it only grows
        print(text[shown:], end="", flush=True)
        shown = len(text)
    print()
    return output


def chat(engine: LLMEngine, questions: list[str], params: SamplingParams) -> None:
    """Ask one question after the other in the same conversation."""
    messages: list[dict[str, str]] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        [output] = engine.generate([messages], params)
        answer = output.outputs[0].text
        messages.append({"role": "assistant", "content": answer})
        print(f"   > {question}\n   {answer}")


def describe(output: RequestOutput) -> str:
    """The two latencies of one request: until its first token, and per token after it."""
    ttft, tpot = output.metrics.ttft, output.metrics.tpot
    assert ttft is not None  # None only while there is no token yet
    first = f"TTFT {ttft * 1e3:.0f} ms for {len(output.prompt_token_ids)} prompt tokens"
    return first + (f", TPOT {tpot * 1e3:.1f} ms per token after it" if tpot else "")


def print_stats(stats: EngineStats) -> None:
    """Counts, time by phase, and memory of the whole program."""
    mib = 2**20
    print(
        f"   {stats.num_requests} requests, {stats.prompt_tokens} prompt tokens, "
        f"{stats.generated_tokens} generated in {stats.num_steps} forward passes\n"
        f"   {stats.prefill_seconds:.2f} s in prefill, {stats.decode_seconds:.2f} s in decode\n"
        f"   weights {stats.weight_bytes / mib:.0f} MiB, KV cache reserved "
        f"{stats.kv_bytes / mib:.0f} MiB, peak of the process {stats.peak_memory_bytes / mib:.0f} "
        f"MiB"
    )


if __name__ == "__main__":
    run(main)
