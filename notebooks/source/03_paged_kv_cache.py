# %% [markdown]
# # 03 · Paged KV cache, one step at a time
#
# The M3 engine on a CPU with a tiny random Qwen3, so that a step takes milliseconds and every block
# can be watched. You will see a sequence cross the border of a block, slots refuse a request for
# which there is memory, three samples share a prompt until they write, and a sequence lose its
# blocks and come back. The reasons are in [note 03](../docs/learn/03_paged_kv_cache.md).

# %%
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt

from common.plot_style import axes, hue, label, legend
from common.plots import block_map, step_timeline
from common.request import SamplingParams
from common.testing.checkpoints import tiny_config, write_checkpoint
from common.trace_replay import state_after
from m2_batching.engine import LLMEngine as SlotEngine
from m3_paged.engine import LLMEngine

warnings.filterwarnings("ignore", message="IProgress not found")  # a progress bar we do not need

folder = Path(tempfile.mkdtemp()) / "tiny-qwen3"
write_checkpoint(folder, tiny_config("qwen3"), seed=1)


def make(**options):
    return LLMEngine(folder, device="cpu", trace=True, **options)


def show(engine):
    """Print the last step, what it did with blocks, and the tables after it."""
    step = engine.trace[-1]
    print(step.summary())
    for event in step.block_events:
        source = f" from {event.source}" if event.source is not None else ""
        print(f"    {event.kind} {event.block}{source} for sequence {event.seq_id}")
    state = state_after(engine.trace, -1)
    for seq_id, table in state.blocks.tables.items():
        print(f"sequence {seq_id}: {state.num_computed[seq_id]} tokens in blocks {table}")


engine = make(block_size=4, num_blocks=12, max_model_len=48)
print(f"{engine.runner.cache.num_blocks} blocks of 4 tokens, {engine.kv_bytes():,} bytes;")
print("shape [2, layers, blocks, block size, KV heads, head_dim]:", [*engine.runner.cache.kv.shape])

# %% [markdown]
# ## A sequence takes blocks as it grows
#
# A prompt of eight tokens fills two blocks of four. Token p lies in block `table[p // 4]`, at place
# `p % 4`. Nothing is reserved for the answer.

# %%
greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
engine.add_request(list(b"eight ch"), greedy)
engine.step()
show(engine)

# %%
# The step that computes token 8 takes a third block; the three after it take none. Run the cell
# again to see them.
engine.step()
show(engine)

# %% [markdown]
# ## The request that slots refuse
#
# The same bytes twice: four slots of 64 places for M2, 64 blocks of four for M3. Twelve requests
# need about 20 places each. Left: how many run at a time. Right: the share of all places that
# holds a token.

# %%
# Change me: shorter or longer answers, more requests, another block size (a divisor of 64).
LENGTHS = [(6 + 3 * (i % 4), 6 + 5 * (i % 5)) for i in range(12)]  # (prompt, answer) tokens
BLOCK_SIZE = 4

slots = SlotEngine(folder, device="cpu", trace=True, max_num_seqs=4, max_model_len=64)
blocks = make(block_size=BLOCK_SIZE, num_blocks=256 // BLOCK_SIZE, max_model_len=64)
assert slots.kv_bytes() == blocks.kv_bytes()
PAIR = {"M2, slots": slots, "M3, blocks": blocks}
prompts = [[(7 * i + j) % 256 for j in range(length)] for i, (length, _) in enumerate(LENGTHS)]
params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for _, n in LENGTHS]
answers, running, stored = {}, {}, {}
for name, each in PAIR.items():
    outputs = each.generate(prompts, params)
    answers[name] = [output.outputs[0].token_ids for output in outputs]
    running[name] = [len(step.running_after) for step in each.trace]
    states = [state_after(each.trace, i) for i in range(len(each.trace))]
    stored[name] = [sum(s.num_computed[i] for i in s.blocks.tables) / 256 for s in states]

_, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for number, name in enumerate(PAIR):
    axes(left, 0, 0).step(range(len(running[name])), running[name], color=hue(number), label=name)
    share = [100 * value for value in stored[name]]
    axes(right, 0, 0).step(range(len(share)), share, color=hue(number), label=name)
label(left, None, "engine step", "sequences running")
label(right, None, "engine step", "places with a token (%)")
left.set_ylim(bottom=0)
right.set_ylim(0, 100)
legend(left)
first = slots.trace[0]
print(f"after M2's first step {len(first.running_after)} run and {len(first.waiting_after)} wait,")
print(f"with {stored['M2, slots'][0]:.0%} of the places in use: the rest of a slot is no slot.")
print(f"M2 needed {len(slots.trace)} steps, M3 {len(blocks.trace)}.")

# %% [markdown]
# ## Three samples of one prompt
#
# `n=3` and a prompt of seven tokens. Sequence 0 computes the first **six**: the last token is left
# to each sample, because from its logits each draws a token of its own.

# %%
engine = make(block_size=4, num_blocks=12, max_model_len=48)
engine.add_request(list(b"samples"), SamplingParams(n=3, max_tokens=6, seed=1, ignore_eos=True))
engine.step()
show(engine)

# %%
# Now the fork. All three write token 6 into block 1, which holds tokens 4 and 5 of everybody: two
# of them get a copy, the last one finds itself the only owner and writes in place.
engine.step()
show(engine)
_ = block_map(engine.trace)

# %% [markdown]
# ## When the blocks run out
#
# Three requests, and blocks for about two of them. Nobody is refused on entry. When a block is
# missing, the sequence that arrived last gives its blocks up, keeps the tokens it has generated,
# and computes them again when it comes back.

# %%
engine = make(block_size=4, num_blocks=9, max_model_len=36)
for text in (b"first", b"second", b"third"):
    engine.add_request(list(text), SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
while not engine.scheduler.num_preemptions:
    engine.step()
show(engine)

# %%
while engine.has_unfinished_requests():
    engine.step()
_ = step_timeline(engine.trace)

# %%
# The claims: more run at once and no token changes; a block is copied only when a shared one is
# written; a preempted sequence gives the tokens of one that was never disturbed; nothing leaks.
assert answers["M2, slots"] == answers["M3, blocks"]
if BLOCK_SIZE == 4:
    assert max(running["M3, blocks"]) >= 2 * max(running["M2, slots"])
    assert len(blocks.trace) < len(slots.trace)

fork = make(block_size=4, num_blocks=12, max_model_len=48)
fork.generate([list(b"samples")], SamplingParams(n=3, max_tokens=6, seed=1, ignore_eos=True))
copies = [e for step in fork.trace for e in step.block_events if e.kind == "copy"]
assert len(copies) == 2

preempted = engine.trace.output_token_ids(2)
(alone,) = make(block_size=4, num_blocks=9, max_model_len=36).generate(
    [list(b"third")], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
)
assert engine.scheduler.num_preemptions > 0
assert preempted == tuple(alone.outputs[0].token_ids)
for each in (engine, fork, blocks):
    each.scheduler.manager.check()
    assert each.scheduler.manager.pool.num_free == each.scheduler.manager.pool.num_blocks
print(f"{len(copies)} copies, {engine.scheduler.num_preemptions} preemption(s), no block leaked")
