"""Few-shot prompting: the examples are computed once, and every question finds them.

    python m6_prefix/examples/few_shot.py
    python m6_prefix/examples/few_shot.py --together

Serves the same questions without caching and with it, one by one or as one batch, and prints the
time to the first token of each. In a batch even the first step shares: the first question computes
the examples, the others read them in the same step.
"""

from __future__ import annotations

from common.cli_errors import OneLineParser, run
from common.outputs import RequestOutput
from common.request import SamplingParams
from common.tables import format_table
from m6_prefix.engine import LLMEngine

EXAMPLES = (
    ("The soup was cold and the waiter was rude.", "negative"),
    ("A wonderful evening, we will come again!", "positive"),
    ("The room was clean, but the street was loud all night.", "mixed"),
    ("Best bread in town, and cheap too.", "positive"),
    ("They lost my suitcase and did not even say sorry.", "negative"),
    ("Good food, although we had to wait an hour for it.", "mixed"),
)
QUESTIONS = (
    "The film was so boring that I fell asleep.",
    "Friendly people and a lovely garden.",
    "The phone is fast, but its battery is weak.",
    "I have never been treated so badly.",
    "What a beautiful concert!",
)


def main(argv: list[str]) -> int:
    """Ask everything twice. Returns the exit code."""
    parser = OneLineParser(description="Questions behind the same examples.")
    parser.add_argument("--model", default="smollm2", help="local folder, hub id, or smollm2")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--together", action="store_true", help="all questions in one batch")
    parser.add_argument("--smoke", action="store_true", help="two questions")
    args = parser.parse_args(argv)
    questions = QUESTIONS[:2] if args.smoke else QUESTIONS
    engine = LLMEngine(
        args.model, device=args.device, dtype="float32", max_model_len=512, num_blocks=256
    )
    answers: dict[bool, list[RequestOutput]] = {}
    for caching in (False, True):
        engine.manager.enable_prefix_caching = caching
        answers[caching] = ask(engine, questions, together=args.together)
    rows = [
        {
            "question": question,
            "answer": cached.outputs[0].text.strip(),
            "tokens": len(cached.prompt_token_ids),
            "cached": cached.metrics.num_cached_tokens,
            "plain ms": 1e3 * (plain.metrics.ttft or 0.0),
            "cached ms": 1e3 * (cached.metrics.ttft or 0.0),
        }
        for question, plain, cached in zip(questions, answers[False], answers[True], strict=True)
    ]
    print(format_table(rows, digits=3))
    stats = engine.manager.stats()
    print(f"\n{stats.hit_tokens} of {stats.queried_tokens} prompt tokens hit: {stats.hit_rate:.1%}")
    same = sum(a.outputs == b.outputs for a, b in zip(*answers.values(), strict=True))
    print(f"{same} of {len(questions)} answers are the same with caching as without.")
    return 0


def prompt_of(question: str) -> str:
    """The examples, then the question."""
    shots = "".join(f"Review: {text}\nOpinion: {label}\n\n" for text, label in EXAMPLES)
    return f"{shots}Review: {question}\nOpinion:"


def ask(engine: LLMEngine, questions: tuple[str, ...], *, together: bool) -> list[RequestOutput]:
    """Answers of three tokens at most, up to the end of the line."""
    params = SamplingParams(temperature=0, max_tokens=3, stop="\n")
    prompts = [prompt_of(question) for question in questions]
    if together:
        return engine.generate(prompts, params)
    return [engine.generate(prompt, params)[0] for prompt in prompts]


if __name__ == "__main__":
    run(main)
