# %% [markdown]
# # 06 · Prefix caching, one block at a time
#
# The M6 engine on a CPU with a tiny random Qwen3 and blocks of four tokens, so that every hit can
# be watched. You will see a prompt begin in its middle, two equal prompts share what neither has
# computed yet, the block that goes when room is needed, what a chat template does to a prefix, and
# what a hit is worth in time. The reasons are in [note 06](../docs/learn/06_prefix_caching.md).

# %%
import tempfile
import time
import warnings
from pathlib import Path

import jinja2
import numpy as np
import torch
from matplotlib.patches import Rectangle

from common.plot_style import INK, axes, hue, label, legend, text_on
from common.plots import block_map
from common.request import SamplingParams
from common.testing.checkpoints import tiny_config, write_checkpoint
from common.testing.qwen_tokenizer import CHAT_TEMPLATE
from m5_chunked.engine import LLMEngine as ChunkedEngine
from m6_prefix.block_hash import BlockHashes
from m6_prefix.engine import LLMEngine

warnings.filterwarnings("ignore", message="IProgress not found")  # a progress bar we do not need
torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp()) / "tiny-qwen3"
write_checkpoint(folder, tiny_config("qwen3", max_positions=2048), seed=1)


def make(kind=LLMEngine, **options):
    defaults = {"block_size": 4, "num_blocks": 64, "max_model_len": 128}
    return kind(folder, device="cpu", trace=True, **{**defaults, **options})


def greedy(max_tokens):
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)


def show(step):
    """Print a step: what each sequence began with, what it computed, what blocks did."""
    print(step.summary())
    found = {item.seq_id: item.num_cached_tokens for item in step.admitted}
    for part in step.slices:
        hit = f", after {found[part.seq_id]} found" if part.seq_id in found else ""
        print(f"    sequence {part.seq_id}: computes {part.num_tokens}{hit}")
    for event in step.block_events:
        of = f" of sequence {event.seq_id}" if event.seq_id is not None else ""
        print(f"    {event.kind} {event.block}{of}")


# %% [markdown]
# ## A prompt that begins in its middle
#
# Sequence 0 computes 22 tokens. Its five full blocks enter the index (`cache`) in the step that
# computes them; the sixth holds two tokens and has no name yet.

# %%
SYSTEM = list(b"You are terse. ")  # 15 tokens: three full blocks and three tokens
engine = make()
engine.add_request(SYSTEM + list(b"Say hi!"), greedy(3))
engine.step()
show(engine.trace[-1])

# %%
# Another question, while the first request still runs: three blocks are hits, and the
# prefill starts at token 12. Both sequences own blocks 0 to 2 now.
engine.add_request(SYSTEM + list(b"And bye!!"), greedy(3))
engine.step()
show(engine.trace[-1])

# %%
# Names. A block's hash covers its tokens and the hash before it, so equal names mean equal
# *prefixes*, and the same tokens behind something else have another name. Hue is hash, an outline
# is a hit, a dotted block is not full and has no name.
engine = make()
PROMPTS = {
    "first": SYSTEM + list(b"Say hi!"),
    "other question": SYSTEM + list(b"And?"),
    "first again": SYSTEM + list(b"Say hi!"),
    "a time in front": list(b"9h. ") + SYSTEM[:7],
    "whole blocks only": SYSTEM[:12],
}
hits = {}
for name, prompt in PROMPTS.items():
    (output,) = engine.generate([prompt], greedy(1))
    hits[name] = output.metrics.num_cached_tokens

ax = axes(None, 8, 3)
colours = {}
for row, (name, prompt) in enumerate(PROMPTS.items()):
    prefix = BlockHashes(4)
    prefix.extend(prompt)
    for i in range(len(prefix)):
        colour = colours.setdefault(prefix.hash(i), hue(len(colours)))
        edge = {"edgecolor": INK, "lw": 2.5} if 4 * i < hits[name] else {"lw": 0}
        ax.add_patch(Rectangle((4 * i + 0.1, row - 0.36), 3.8, 0.72, facecolor=colour, **edge))
        text = repr(bytes(prefix.tokens(i)).decode())[1:-1]
        ax.text(4 * i + 2, row, text, ha="center", va="center", color=text_on(colour), fontsize=9)
    rest = len(prompt) % 4
    if rest:
        at = (len(prompt) - rest + 0.1, row - 0.36)
        ax.add_patch(Rectangle(at, rest - 0.2, 0.72, facecolor="none", edgecolor=INK, ls=":"))
ax.set(xlim=(0, 24), ylim=(len(PROMPTS) - 0.4, -0.6), xticks=range(0, 25, 4))
ax.set_yticks(range(len(PROMPTS)), [f"{name}: {hits[name]} found" for name in PROMPTS])
label(ax, None, "token of the prompt", None)

# %% [markdown]
# The last row is fully cached and still computes its last block: the last token has to run, or
# there would be no logits to sample from, and hits are whole blocks.
#
# ## Two equal prompts in one step
#
# Sequence 0 publishes its blocks when its place in the step is final, before sequence 1 is matched.
# Both run in the same forward pass. In every layer K and V of the whole batch are stored before
# anybody attends, so sequence 1 reads what sequence 0 has just written.

# %%
twins = make()
for _ in range(2):
    twins.add_request(PROMPTS["first"], greedy(4))
twins.step()
show(twins.trace[-1])

# %% [markdown]
# ## Which block goes
#
# A pool of eight blocks. A and B have come and gone and left three full blocks each; B's were left
# last. Then C hits A's first block, which makes it the most recent of all.

# %%
pool = make(num_blocks=8, max_model_len=32)
for text in (b"aaaaAAAA1111", b"bbbbBBBB2222"):
    pool.generate([list(text)], greedy(1))
    print("next to be taken:", pool.manager.pool.free_ids)
pool.generate([list(b"aaaaCC")], greedy(1))
print("after the hit:   ", pool.manager.pool.free_ids)
_ = block_map(pool.trace)

# %%
# D needs five blocks. Two are blank and are taken first; for the rest the tail of A goes, then its
# middle, then the tail of B. What everybody shared, the front, stays.
pool.generate([list(range(100, 120))], greedy(1))
show(pool.trace[-1])
evicted = [e.block for e in pool.trace[-1].block_events if e.kind == "evict"]
_ = block_map(pool.trace)

# %% [markdown]
# ## What a template does to a prefix
#
# Qwen3's template leaves out the thoughts of earlier turns. So the next prompt is not a
# continuation of what was computed: they part where the old answer begins. Here each answer is
# written by hand and served behind its prompt, once with thoughts that are dropped later, once
# without any.

# %%
template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(CHAT_TEMPLATE)


def turns(thought):
    chat_engine = make(num_blocks=512, max_model_len=1024)
    messages, rows = [{"role": "system", "content": "You are terse."}], []
    for question in ("What is a block?", "And a page?", "Which is larger?"):
        messages.append({"role": "user", "content": question})
        prompt = template.render(messages=messages, add_generation_prompt=True)
        (output,) = chat_engine.generate([list(prompt.encode())], greedy(1))
        rows.append((len(prompt.encode()), output.metrics.num_cached_tokens))
        answer = thought + f"Good question: {question}<|im_end|>\n"
        chat_engine.generate([list((prompt + answer).encode())], greedy(1))
        messages.append({"role": "assistant", "content": answer.removesuffix("<|im_end|>\n")})
    return rows


THOUGHT = "<think>\nThe user asks something. Let me think about it.\n</think>\n\n"
chats = {"without thoughts": turns(""), "with thoughts": turns(THOUGHT)}
for name, rows in chats.items():
    print(name, *(f"{found} of {length} found" for length, found in rows), sep="; ")

# %% [markdown]
# ## What a hit is worth: T0 + t · (L − hit)
#
# A prefill takes a time T0 that does not depend on its length (launches, Python, reading the
# weights) and a time t per computed token. A somewhat larger random model, one prompt per length,
# found to different shares; the dashed line is the least-squares fit per length, and its value at
# "all found" is what no cache removes. The naive backend, because it treats all prompts alike:
# PyTorch's own attention takes a shorter way on a CPU for a prompt with nothing before it, and
# then a small hit on a long prompt of a small model can cost more time than it saves.

# %%
# Change me: longer prompts make T0 matter less, a wider model makes t larger.
LENGTHS, HIDDEN, REPEATS = (64, 256, 1024), 512, 6

wide = Path(tempfile.mkdtemp()) / "wide-qwen3"
write_checkpoint(
    wide, tiny_config("qwen3", hidden=HIDDEN, intermediate=3 * HIDDEN, max_positions=2048), seed=2
)
timed = LLMEngine(
    wide, device="cpu", num_blocks=2048, max_model_len=1100, attention_backend="naive"
)
clock, fits, fresh = {}, {}, iter(range(10**9))
for length in LENGTHS:
    base = [(7 * i) % 256 for i in range(length)]
    timed.generate([base], greedy(1))  # fills the cache, and warms up
    shares = [min(quarter * length // 64 * 16, length - 16) for quarter in range(5)]  # blocks
    for found in shares * REPEATS:  # in turn, so that what else the machine does hits all alike
        number = next(fresh)
        rest = [(number + 13 * i) % 256 for i in range(length - found)]
        rest[0] = 256 + number % 60  # a token that no other prompt has here
        begin = time.perf_counter()
        (output,) = timed.generate([base[:found] + rest], greedy(1))
        took = 1e3 * (time.perf_counter() - begin)
        assert output.metrics.num_cached_tokens == found
        clock[length, found] = min(took, clock.get((length, found), took))  # noise only adds
    points = {found: ms for (size, found), ms in clock.items() if size == length}
    weights = [1 / ms for ms in points.values()]  # relative errors
    computed = [length - found for found in points]
    t, fixed = np.polyfit(computed, list(points.values()), 1, w=weights)
    fits[length] = (fixed, t)

ax = axes(None, 7, 3.4)
for number, length in enumerate(LENGTHS):
    points = {found: ms for (size, found), ms in clock.items() if size == length}
    shares = [100 * found / length for found in points]
    look = {"color": hue(number), "label": f"{length} tokens"}
    ax.plot(shares, [100 * ms / points[0] for ms in points.values()], "osD^v"[number], **look)
    fixed, t = fits[length]
    ends = [100 * (fixed + t * length) / points[0], 100 * fixed / points[0]]
    ax.plot([0, 100], ends, ls="--", color=hue(number), lw=1)
    print(f"{length:5} tokens: T0 = {fixed:6.1f} ms, t = {1e3 * t:6.1f} µs per token")
label(ax, None, "tokens of the prompt that are found (%)", "time, as a share of the cold run (%)")
ax.set_ylim(bottom=0)
legend(ax)

# %%
# The claims. Tokens computed are the prompt less the hits, the rate is the one computed by hand,
# outputs are those without a cache, the order of eviction is exact, and nothing leaks.
shots = [SYSTEM + [200 + i] * 9 for i in range(5)]  # 24 tokens each, of which 12 are whole blocks
few, plain = make(), make(ChunkedEngine)
answers = [
    [o.outputs[0].token_ids for o in each.generate(shots, greedy(4))] for each in (few, plain)
]
assert answers[0] == answers[1]
stats = few.manager.stats()
assert (stats.queried_tokens, stats.hit_tokens) == (5 * 24, 4 * 12)
assert stats.hit_rate == 48 / 120
prefills = [sum(s.tokens_of("prefill") for s in each.trace) for each in (few, plain)]
assert prefills == [5 * 24 - 4 * 12, 5 * 24]

assert hits == dict(zip(PROMPTS, (0, 12, 20, 0, 8), strict=True))
assert [p.num_tokens for p in twins.trace[0].slices] == [22, 2]
assert evicted == [2, 1, 5]
for length, found in chats["with thoughts"][1:]:
    before = [size for size, _ in chats["with thoughts"] if size < length][-1]
    assert found == 4 * (before // 4)  # the whole prompt of the turn before, nothing of its answer
for each in (few, pool, engine):
    each.manager.check()
    assert each.manager.pool.num_free == each.manager.pool.num_blocks
print(f"{prefills[0]} prompt tokens computed, {prefills[1]} without; hit rate {stats.hit_rate:.0%}")
