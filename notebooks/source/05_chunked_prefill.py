# %% [markdown]
# # 05 · Chunked prefill, one step at a time
#
# The M4 and the M5 engine on a CPU with a tiny random Qwen3, and the same requests for both. You
# will see a long prompt stop three chats, the same prompt come in slices beside them, how long a
# chat stands still for each budget (in tokens computed, which is exact, and in milliseconds of this
# CPU, which is not), and what a budget of one token does. The reasons are in
# [note 05](../docs/learn/05_chunked_prefill.md).

# %%
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from common.metrics import largest_gaps
from common.plot_style import axes, hue, label, legend
from common.plots import token_bars
from common.request import SamplingParams
from common.testing.checkpoints import tiny_config, write_checkpoint
from m4_flash.engine import LLMEngine as M4Engine
from m5_chunked.engine import LLMEngine

warnings.filterwarnings("ignore", message="IProgress not found")  # a progress bar we do not need
torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp()) / "tiny-qwen3"
shape = {"hidden": 256, "intermediate": 512, "layers": 4, "max_positions": 640}
write_checkpoint(folder, tiny_config("qwen3", **shape), seed=1)


def make(budget=None):
    """M5 with this budget, or M4, which computes each prompt whole."""
    options = {"device": "cpu", "max_num_seqs": 8, "num_blocks": 96, "trace": True}
    if budget is None:
        return M4Engine(folder, **options)
    return LLMEngine(folder, max_num_batched_tokens=budget, **options)


def greedy(count):
    return SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)


def show(step):
    """Print a step and the slices in it."""
    print(step.summary())
    for part in step.slices:
        end = part.start + part.num_tokens - 1
        where = f"position {end}" if part.num_tokens == 1 else f"positions {part.start} to {end}"
        print(f"   r{part.request_id}: {part.phase}, {where}{', a token' * part.num_sampled}")


# %% [markdown]
# ## Three chats, and a prompt of 72 tokens
#
# The chats have begun; then the prompt arrives. M4 first: a step is all prefill or all decode, and
# prefill goes first.

# %%
CHATS = [list(range(30, 30 + length)) for length in (6, 9, 5)]
LONG_PROMPT = [(7 * i) % 256 for i in range(72)]


def begin(engine):
    for prompt in CHATS:
        engine.add_request(prompt, greedy(12))
    for _ in range(4):
        engine.step()
    engine.add_request(LONG_PROMPT, greedy(3))


whole = make()
begin(whole)
whole.step()
show(whole.trace[-1])

# %% [markdown]
# Nobody else is in that step: three chats wait for 72 tokens of a stranger. Now M5 with a budget of
# 16 tokens a step. Each chat takes one of them, and the prompt gets the other 13.

# %%
chunked = make(budget=16)
begin(chunked)
chunked.step()
show(chunked.trace[-1])

# %%
# The next chunk. The slice begins where the last one ended, and it still yields no token: only the
# last position of a prompt has something to say. Run this cell again for more.
chunked.step()
show(chunked.trace[-1])

# %%
# The rest of both. Solid is prefill, light is decode, one colour per request.
for engine in (whole, chunked):
    while engine.has_unfinished_requests():
        engine.step()

_, panels = plt.subplots(2, 1, figsize=(8, 6.4), layout="constrained")
for panel, (name, engine) in zip(panels, {"M4": whole, "M5": chunked}.items(), strict=True):
    token_bars(engine.trace, axes(panel, 0, 0), f"{name}: {len(engine.trace)} steps")
    panel.set_ylim(0, 80)

# %% [markdown]
# ## How long a chat stands still
#
# Four chats decode, and a prompt lands among them. Milliseconds belong to a machine, so count
# first: how many tokens does the engine compute from one token of a chat to its next one? Then the
# clock, best of three runs.

# %%
# Change me: budgets (None is M4), the long prompt (up to 600 tokens), how many chats decode.
BUDGETS = (None, 256, 128, 64, 16)
LENGTH = 480
NUM_CHATS = 4


def pauses(trace, seq_id):
    """Tokens computed from each token of a sequence to its next one, that step included."""
    found, since = [], None
    for step in trace:
        since = None if since is None else since + step.num_tokens
        if any(part.seq_id == seq_id and part.num_sampled for part in step.slices):
            found += [] if since is None else [since]
            since = 0
    return found


def land(engine):
    """Four tokens for each chat, then the long prompt, up to its first token and one more step."""
    seen = {}
    chats = [engine.add_request([40 + i] * 8, greedy(120)) for i in range(NUM_CHATS)]
    while any(len(seen[name].metrics.token_times) < 4 if name in seen else True for name in chats):
        seen.update({output.request_id: output for output in engine.step()})
    arrived = len(engine.trace)
    long = engine.add_request([(11 * i) % 256 for i in range(LENGTH)], greedy(2))
    while long not in seen or not seen[long].finished:
        seen.update({output.request_id: output for output in engine.step()})
    for name in chats:
        engine.abort(name)
    gaps = largest_gaps([seen[name].metrics for name in chats], [seen[long].metrics])
    return engine.trace, arrived, 1e3 * max(gaps), 1e3 * seen[long].metrics.ttft


runs = {budget: [land(make(budget)) for _ in range(3)] for budget in BUDGETS}
print("budget   longest pause of a chat       the prompt's first token")
longest, gap, ttft, steps = {}, {}, {}, {}
for budget, landed in runs.items():
    trace, arrived = landed[0][:2]
    longest[budget] = max(max(pauses(trace, chat)) for chat in range(NUM_CHATS))
    ends = [any(p.seq_id == NUM_CHATS and p.num_sampled for p in step.slices) for step in trace]
    steps[budget] = ends.index(True) - arrived + 1
    gap[budget], ttft[budget] = min(run[2] for run in landed), min(run[3] for run in landed)
    print(f"{budget or 'M4':>6} {longest[budget]:7} tokens, {gap[budget]:6.1f} ms", end="")
    print(f" {steps[budget]:9} steps, {ttft[budget]:6.1f} ms")

# %%
# Left: one line per budget, a mark where the chats get their tokens. Right: the two prices of a
# budget, one against the other.
_, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
for row, (budget, landed) in enumerate(runs.items()):
    trace, arrived = landed[0][:2]
    at, computed = [0], 0
    for step in trace.steps[arrived:]:
        computed += step.num_tokens
        if any(part.seq_id == 0 for part in step.slices):
            at.append(computed)
    axes(left, 0, 0).plot(at, [row] * len(at), "|", color=hue(row), markersize=14)
    axes(right, 0, 0).plot(gap[budget], ttft[budget], "o", color=hue(row), label=budget or "M4")
left.set_yticks(range(len(BUDGETS)), [str(budget or "M4") for budget in BUDGETS])
left.invert_yaxis()
label(left, None, "tokens computed since the prompt came", "budget")
label(right, None, "longest gap of a chat (ms)", "TTFT of the long prompt (ms)")
right.set_xlim(left=0)
right.set_ylim(bottom=0)
legend(right)

# %% [markdown]
# Down the list the pauses shrink and the prompt waits longer. It has to: every chunk is a step, and
# every step carries the chats as well, reads all weights once more, and the K and V of all chunks
# before it.
#
# ## A budget of one token
#
# The extreme case. There are never more seats than tokens, or somebody would have to wait in the
# middle of an answer; so with one token there is one seat, and requests are served one after the
# other, position by position. Slow, and the same text.

# %%
single = make(budget=1)
for prompt in CHATS:
    single.add_request(prompt, greedy(12))
for _ in range(7):
    single.step()
show(single.trace[5])
show(single.trace[6])
print("waiting:", single.trace[6].waiting_after)
while single.has_unfinished_requests():
    single.step()
print(len(single.trace), "steps of", {step.num_tokens for step in single.trace}, "token")

# %%
# The claims: with a budget of B a chat never stands still for more than B computed tokens, and in
# M4 for the whole prompt and the decodes of the step behind it; the prompt needs more steps the
# smaller B is; and the tokens of every request are the same, however its prompt was cut.
assert longest.pop(None) == LENGTH + NUM_CHATS + 1
for budget, pause in longest.items():
    assert pause <= budget
    assert steps[budget] == -(-LENGTH // (budget - NUM_CHATS))
assert all(step.num_tokens <= 16 for step in chunked.trace)
assert {step.num_tokens for step in single.trace} == {1}

texts = [whole.trace.output_token_ids(number) for number in range(4)]
assert texts == [chunked.trace.output_token_ids(number) for number in range(4)]
assert texts[:3] == [single.trace.output_token_ids(number) for number in range(3)]
first, *others = (landed[0][0] for landed in runs.values())
for trace in others:
    assert trace.output_token_ids(NUM_CHATS) == first.output_token_ids(NUM_CHATS)
print("no pause above the budget, and every request has the same tokens as in M4")
