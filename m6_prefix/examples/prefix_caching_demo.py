"""Prompts as bars of blocks, and the tree of cached blocks that they leave behind.

    python m6_prefix/examples/prefix_caching_demo.py
    python m6_prefix/examples/prefix_caching_demo.py --num-blocks 64

Every prompt is drawn as the blocks of its table, hits outlined twice::

    ╔════╗╔════╗┌────┐┌╌╌╌╌┐
    ║  0 ║║  1 ║│  7 ││  8 ┆      0 and 1 were found, 7 was computed and can be found from now on,
    ╚════╝╚════╝└────┘└╌╌╌╌┘      8 is not full and has no name yet

After it comes the tree: one line per branch, ``║ ║`` around the blocks that the last request hit.
The pool is small, so that the last requests throw cached blocks out. What is drawn depends on the
tokens alone: it is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from common.cli_errors import OneLineParser, run
from common.request import SamplingParams
from common.tokenizer import Tokenizer
from m6_prefix.engine import LLMEngine
from m6_prefix.tree_index import CachedPrefix, TreeIndex

BLOCK_SIZE = 4
SYSTEM = "You are a patient teacher who answers every question in one short sentence. "
SKY, HAMLET = SYSTEM + "Question: why is the sky blue?", SYSTEM + "Question: who wrote Hamlet?"
STORY = (
    "Once upon a time in a small house at the edge of a forest there lived a baker who had three "
    "cats, and each of them had a chair of its own at the table by the window."
)
REQUESTS: tuple[tuple[str, str, str | None], ...] = (
    ("the first request computes everything", SKY, None),
    ("another question behind the same text", HAMLET, None),
    ("the first one again: what is not a full block is computed", SKY, None),
    ("a longer prompt that begins like it", SKY + " Explain it to a child of six years.", None),
    ("the same words under a salt: nobody else's blocks", HAMLET, "tenant B"),
    ("one changed word at the start: nothing fits", "Now y" + SYSTEM[1:] + "Question: who?", None),
    ("a long stranger: the pool is full, what is oldest goes", STORY, None),
    ("the first one once more: which of its blocks are left?", SKY, None),
)


def main(argv: list[str]) -> int:
    """Serve the requests one by one and draw each. Returns the exit code."""
    parser = OneLineParser(description="Prompts as bars of blocks, and the tree they leave.")
    parser.add_argument("--model", default="smollm2", help="local folder, hub id, or smollm2")
    parser.add_argument("--num-blocks", type=int, default=24, help="blocks of 4 tokens in the pool")
    parser.add_argument("--smoke", action="store_true", help="only the first three requests")
    args = parser.parse_args(argv)
    engine = LLMEngine(
        args.model, device="cpu", num_blocks=args.num_blocks, block_size=BLOCK_SIZE,
        prefix_index="tree", trace=True,
    )  # fmt: skip
    index, tokenizer = engine.manager.pool.index, engine.tokenizer
    assert isinstance(index, TreeIndex)
    if tokenizer is None:
        parser.error(f"{args.model} has no tokenizer, and the requests are text")
    for number, (title, text, salt) in enumerate(REQUESTS[:3] if args.smoke else REQUESTS, 1):
        served = serve(engine, text, salt)
        print(f"\n{number}. {title}")
        print(f"   {served.num_cached} of {served.num_tokens} tokens found", end="")
        print(f", thrown out: {served.evicted}" if served.evicted else "")
        print(bar(served))
        print(tree_text(index, served.hits, tokenizer))
    stats = engine.manager.stats()
    print(
        f"\n{stats.hit_tokens} of {stats.queried_tokens} tokens hit ({stats.hit_rate:.0%}), "
        f"{stats.evicted_blocks} blocks lost their content"
    )
    return 0


@dataclass
class Served:
    """One request's table, in the order in which it was filled.

    Attributes:
        num_tokens: Length of its prompt.
        num_cached: Tokens that it did not compute.
        blocks: Its blocks.
        hits: Those that were found.
        evicted: Blocks that lost their content to it.
    """

    num_tokens: int = 0
    num_cached: int = 0
    blocks: list[int] = field(default_factory=list)
    hits: set[int] = field(default_factory=set)
    evicted: list[int] = field(default_factory=list)


def serve(engine: LLMEngine, text: str, salt: str | None) -> Served:
    """Serve one prompt for one token, and read its blocks off the trace."""
    trace = engine.trace
    assert trace is not None
    first = len(trace)
    engine.add_request(text, SamplingParams(temperature=0, max_tokens=1), cache_salt=salt)
    served = Served()
    while engine.has_unfinished_requests():
        for output in engine.step():
            served.num_tokens = len(output.prompt_token_ids)
            served.num_cached = output.metrics.num_cached_tokens
    for step in trace.steps[first:]:
        for event in step.block_events:
            if event.kind in ("hit", "alloc"):
                served.blocks.append(event.block)
            if event.kind == "hit":
                served.hits.add(event.block)
            if event.kind == "evict":
                served.evicted.append(event.block)
    return served


def bar(served: Served) -> str:
    """The prompt as a row of boxes: found, computed, not full."""
    lines = ["", "", ""]
    for place, block in enumerate(served.blocks):
        if block in served.hits:
            box = ("╔════╗", f"║{block:3} ║", "╚════╝")
        elif (place + 1) * BLOCK_SIZE <= served.num_tokens:
            box = ("┌────┐", f"│{block:3} │", "└────┘")
        else:
            box = ("┌╌╌╌╌┐", f"┆{block:3} ┆", "└╌╌╌╌┘")
        lines = [line + part for line, part in zip(lines, box, strict=True)]
    return "\n".join("   " + line for line in lines)


@dataclass
class Branch:
    """Cached blocks without a fork among them.

    Attributes:
        run: From the first to the last.
        children: What continues the last one: none, or two and more.
    """

    run: list[CachedPrefix]
    children: list[Branch]


def tree_text(index: TreeIndex, hits: set[int], tokenizer: Tokenizer) -> str:
    """The tree, one line per branch, with the text of each branch."""
    nodes = list(index)
    lines, place = [f"   cached: {len(index)} blocks"], 0
    while place < len(nodes):
        keys = nodes[place].extra_keys
        mine = [node for node in nodes[place:] if node.extra_keys == keys]
        if keys:
            lines.append(f"   salt {keys[0]!r}")
        lines += [f"   {line}" for line in _draw(_branches(mine), hits, tokenizer, "")]
        place += len(mine)
    return "\n".join(lines)


def _branches(nodes: list[CachedPrefix]) -> list[Branch]:
    """Nodes in preorder, as branches."""
    if not nodes:
        return []
    depth = nodes[0].depth
    starts = [i for i, node in enumerate(nodes) if node.depth == depth]
    found = []
    for begin, end in zip(starts, [*starts[1:], len(nodes)], strict=True):
        below = _branches(nodes[begin + 1 : end])
        if len(below) == 1:
            found.append(Branch([nodes[begin], *below[0].run], below[0].children))
        else:
            found.append(Branch([nodes[begin]], below))
    return found


def _draw(
    branches: list[Branch], hits: set[int], tokenizer: Tokenizer, indent: str
) -> Iterator[str]:
    for number, branch in enumerate(branches, 1):
        is_last = number == len(branches)
        cells = [_cell(node.blocks, hits) for node in branch.run]
        ids = [token for node in branch.run for token in node.token_ids]
        text = shortened(tokenizer.decode(ids))
        yield f"{indent}{'└' if is_last else '├'}─ {' '.join(cells)}  {text!r}"
        below = indent + ("   " if is_last else "│  ")
        yield from _draw(branch.children, hits, tokenizer, below)


def _cell(blocks: tuple[int, ...], hits: set[int]) -> str:
    names = ",".join(map(str, blocks))
    return f"║{names}║" if hits & set(blocks) else f"│{names}│"


def shortened(text: str, width: int = 40) -> str:
    """The text, its middle left out where it is long."""
    half = (width - 3) // 2
    return text if len(text) <= width else f"{text[:half]} … {text[-half:]}"


if __name__ == "__main__":
    run(main)
