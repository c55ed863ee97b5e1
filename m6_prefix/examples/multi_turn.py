"""A chat in which every turn sends the whole conversation again, and computes only what is new.

    python m6_prefix/examples/multi_turn.py
    python m6_prefix/examples/multi_turn.py --reply-tokens 40 --block-size 4

Prints, turn by turn, how long the prompt is, how much of it was found, and when the first token
came with and without caching. What is found includes the reply before: its blocks were cached while
it was generated. What is computed is the question, and up to a block at the end of the reply.
"""

from __future__ import annotations

from common.cli_errors import OneLineParser, run
from common.request import SamplingParams
from common.tables import format_table
from m6_prefix.engine import LLMEngine

SYSTEM = "You are a helpful guide in a science museum. Answer in two short sentences."
TURNS = (
    "What is the largest planet?",
    "How many moons does it have?",
    "Which of them is the biggest one?",
    "Could a person live there?",
    "What should I look at next?",
)


def main(argv: list[str]) -> int:
    """Chat. Returns the exit code."""
    parser = OneLineParser(description="A chat, with the tokens that each turn computes.")
    parser.add_argument("--model", default="smollm2", help="local folder, hub id, or smollm2")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--reply-tokens", type=int, default=24, help="tokens of a reply at most")
    parser.add_argument("--block-size", type=int, default=16, help="tokens per KV block")
    parser.add_argument("--smoke", action="store_true", help="two turns, short replies")
    args = parser.parse_args(argv)
    turns = TURNS[:2] if args.smoke else TURNS
    reply_tokens = 4 if args.smoke else args.reply_tokens
    engine = LLMEngine(
        args.model, device=args.device, max_model_len=1024, block_size=args.block_size,
        num_blocks=2 * -(-1024 // args.block_size),
    )  # fmt: skip
    messages = [{"role": "system", "content": SYSTEM}]
    rows = list[dict[str, object]]()
    for number, question in enumerate(turns, 1):
        messages.append({"role": "user", "content": question})
        row, reply = turn(engine, messages, reply_tokens)
        messages.append({"role": "assistant", "content": reply})
        rows.append({"turn": number, **row})
        print(f"you:   {question}\nmodel: {reply.strip()}")
    print()
    print(format_table(rows, digits=3))
    stats = engine.manager.stats()
    print(f"\n{stats.hit_tokens} of {stats.queried_tokens} prompt tokens hit: {stats.hit_rate:.1%}")
    return 0


def turn(
    engine: LLMEngine, messages: list[dict[str, str]], reply_tokens: int
) -> tuple[dict[str, object], str]:
    """One turn, begun without caching and then answered with it; its line of the table, its reply.

    Args:
        engine: Idle.
        messages: The conversation, the question last.
        reply_tokens: Tokens of the reply at most.
    """
    engine.manager.enable_prefix_caching = False
    (plain,) = engine.generate(messages, SamplingParams(temperature=0, max_tokens=1))
    engine.manager.enable_prefix_caching = True
    (cached,) = engine.generate(messages, SamplingParams(temperature=0, max_tokens=reply_tokens))
    tokens, found = len(cached.prompt_token_ids), cached.metrics.num_cached_tokens
    line: dict[str, object] = {
        "prompt": tokens,
        "found": found,
        "computed": tokens - found,
        "plain ms": 1e3 * (plain.metrics.ttft or 0.0),
        "cached ms": 1e3 * (cached.metrics.ttft or 0.0),
    }
    return line, cached.outputs[0].text


if __name__ == "__main__":
    run(main)
