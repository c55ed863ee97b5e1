# %% [markdown]
# # 02 · Continuous batching, one step at a time
#
# The M2 engine on a CPU, with a real model (SmolLM2-135M). You hold the clock: a cell is one
# `engine.step()`, or as many as it says. You will see requests join and leave a running batch, the
# same eight requests in static groups, and an urgent request that takes somebody's slot. The
# derivations are in [note 02](../docs/learn/02_continuous_batching.md).

# %%
import warnings

import matplotlib.pyplot as plt

from common.plot_style import axes
from common.plots import step_timeline
from common.request import SamplingParams
from m1_basic.engine import LLMEngine as M1Engine
from m2_batching.engine import LLMEngine

warnings.filterwarnings("ignore", message="IProgress not found")  # a progress bar we do not need

# Change me: (prompt, output) tokens of each request, and how many may run together.
SIZES = [(12, 4), (5, 20), (20, 7), (9, 11), (7, 5), (16, 16), (6, 3), (11, 9)]
SLOTS = 4

prompts = [list(range(100, 100 + length)) for length, _ in SIZES]
params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for _, n in SIZES]
options = {"dtype": "float32", "device": "cpu", "max_model_len": 64, "trace": True}
engine = LLMEngine("smollm2", max_num_seqs=SLOTS, **options)
print(f"{SLOTS} slots of 64 tokens: {engine.stats().kv_bytes / 2**20:.1f} MiB for K and V")

# %% [markdown]
# ## One engine step a cell
#
# `add_request` only queues. The first step admits as many as there are slots, and computes their
# prompts as one rectangle: rows are padded to the longest, and the padding is computed for nothing.


# %%
def show(step):
    """Print who waits and runs after a step, and what it computed."""
    print(step.summary())
    for part in step.slices:
        last = part.start + part.num_tokens - 1
        where = f"position {last}" if part.num_tokens == 1 else f"positions {part.start} to {last}"
        print(f"   r{part.seq_id}: {part.phase}, {where}")


for prompt, each in zip(prompts, params, strict=True):
    engine.add_request(prompt, each)
outputs = engine.step()
show(engine.trace[-1])

# %%
# From now on one token per running sequence. Run this cell again for more.
outputs = engine.step()
show(engine.trace[-1])

# %%
# On to the first step in which somebody finishes, and the one after it: the slot is taken at
# once, and the others pause while the newcomer's prompt is computed (prefill first).
while not engine.trace[-1].finished:
    engine.step()
show(engine.trace[-1])
engine.step()
show(engine.trace[-1])

# %%
# The rest. Solid is prefill, light is decode, a dotted line waits; a gap is a pause.
while engine.has_unfinished_requests():
    engine.step()
_ = step_timeline(engine.trace)

# %% [markdown]
# ## The same requests in static groups
#
# Static batching hands in as many requests as there are slots and takes the next group when the
# last of them has ended. Same engine, same requests: only the moment of handing them in differs.

# %%
static = LLMEngine("smollm2", max_num_seqs=SLOTS, **options)
for first in range(0, len(prompts), SLOTS):
    group = slice(first, first + SLOTS)
    static.generate(prompts[group], params[group])

traces = {"static groups": static.trace, "continuous": engine.trace}
longest = max(len(trace) for trace in traces.values())
_, panels = plt.subplots(2, 1, figsize=(9, 7.4), layout="constrained")
for panel, (name, trace) in zip(panels, traces.items(), strict=True):
    seats = sum(len(step.slices) for step in trace) / (SLOTS * len(trace))
    ax = axes(panel, 0, 0)
    step_timeline(trace, ax, f"{name}: {len(trace)} steps, {seats:.0%} of the seats at work")
    ax.set_xlim(0, longest)

# %% [markdown]
# Everything that static batching loses is to the right of a finished bar: its seat is empty until
# the longest of the group has ended. Continuous batching loses the pauses instead.
#
# ## A request that cannot wait
#
# With `policy="priority"` a smaller number goes first. Two slots, both taken by requests of
# priority 1; then one of priority 0 arrives. Nobody's slot is free, so the last that was admitted
# gives up its own. Its tokens stay, its K and V are gone: it will compute them again.

# %%
urgent = LLMEngine("smollm2", max_num_seqs=2, policy="priority", **options)
for number in (1, 3):
    urgent.add_request(prompts[number], params[number], priority=1)
for _ in range(4):
    urgent.step()
urgent.add_request(prompts[6], params[6], priority=0)
urgent.step()
show(urgent.trace[-1])

# %%
# It comes back with its prompt and its four tokens as one prefill. The cross is the preemption.
done = {}
while urgent.has_unfinished_requests():
    done.update({out.request_id: out for out in urgent.step() if out.finished})
back = next(step for step in urgent.trace.steps[5:] if step.admitted)
show(back)
_ = step_timeline(urgent.trace)

# %% [markdown]
# ## What a step costs when the batch grows
#
# The same decode step with one, two, four and eight sequences. The weights are read once for all
# of them, so a step takes longer, but not in proportion, and tokens per second rise.

# %%
crowd = LLMEngine("smollm2", max_num_seqs=8, **options)
for batch in (1, 2, 4, 8):
    several = [prompts[0]] * batch
    crowd.generate(several, SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    fastest = min(step.elapsed_ms for step in crowd.trace.steps[-4:])
    print(f"batch {batch}: a step {fastest:5.1f} ms, {1e3 * batch / fastest:5.1f} tok/s")

# %%
# The claim: fewer steps than static groups, far fewer than one by one, and the same tokens.
m1 = M1Engine("smollm2", **options)
alone = [out.outputs[0].token_ids for out in m1.generate(prompts, params)]
for trace in traces.values():
    assert [trace.output_token_ids(i) for i in range(len(SIZES))] == alone
assert len(engine.trace) < len(static.trace) < len(m1.trace)
assert max(len(step.running_after) for step in engine.trace) <= SLOTS
assert [done[str(i)].outputs[0].token_ids for i in range(3)] == [alone[i] for i in (1, 3, 6)]
steps = {"one by one": len(m1.trace), "static": len(static.trace), "continuous": len(engine.trace)}
print(f"the same {sum(map(len, alone))} tokens in each; steps: {steps}")
