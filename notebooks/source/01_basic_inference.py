# %% [markdown]
# # 01 · Basic inference, one step at a time
#
# The M1 engine on a CPU, with a real model (SmolLM2-135M). You will see logits become a
# distribution and a distribution become a token, hold the engine's clock step by step, and measure
# what the KV cache is worth. The derivations are in
# [note 01](../docs/learn/01_basic_inference.md).

# %%
import warnings

import matplotlib.pyplot as plt
import torch

from common.charts import line_with_floor
from common.model_costs import decode_bytes, token_forwards
from common.peaks import measured_bandwidth
from common.plot_style import INK, axes, hue, label
from common.plots import step_timeline
from common.request import SamplingParams
from m0_init.forward import next_token_logits
from m1_basic.engine import LLMEngine
from m1_basic.sampler import sampling_distribution

warnings.filterwarnings("ignore", message="IProgress not found")  # a progress bar we do not need
torch.set_num_threads(1)  # slower, and steadier on a machine that does other things too

engine = LLMEngine("smollm2", device="cpu", max_model_len=512, trace=True)
tokenizer, config = engine.tokenizer, engine.model.config
per_token = engine.cache.nbytes // engine.max_model_len
print(f"{config.num_layers} layers, {config.num_heads} query and {config.num_kv_heads} KV heads")
print(f"KV cache: {per_token:,} bytes per token, {engine.cache.nbytes / 2**20:.1f} MiB reserved")

# %% [markdown]
# ## Logits to a distribution
#
# One forward pass gives a score for each of 49,152 tokens. Each panel shows what one parameter
# makes of the same scores: the twelve likeliest tokens, and how many are left in all.

# %%
# Change me: another prompt, other values, several parameters at once.
PROMPT = "My favourite colour is"
VARIANTS = {
    "softmax": SamplingParams(),
    "temperature 0.5": SamplingParams(temperature=0.5),
    "temperature 2": SamplingParams(temperature=2.0),
    "top_k 5": SamplingParams(top_k=5),
    "top_p 0.5": SamplingParams(top_p=0.5),
    "min_p 0.25": SamplingParams(min_p=0.25),
}

logits = next_token_logits(engine.model, tokenizer.encode(PROMPT))
rows = sampling_distribution(logits.expand(len(VARIANTS), -1), list(VARIANTS.values()))
best = logits.topk(12).indices.tolist()
_, panels = plt.subplots(2, 3, figsize=(9, 6.4), sharey=True, layout="constrained")
for panel, name, row in zip(panels.flat, VARIANTS, rows, strict=False):
    ax = axes(panel, 0, 0)
    ax.barh(range(len(best)), 100 * row[best], color=hue(0))
    ax.set_yticks(range(len(best)), [repr(tokenizer.token_text(token)) for token in best])
    ax.set_ylim(len(best) - 0.4, -0.6)
    label(ax, f"{name}: {int((row > 0).sum()):,} left", "probability (%)", None)

# %% [markdown]
# ## A distribution to a token: the exponential race
#
# Every token gets a clock that rings after `Exp(1) / p` seconds. The first to ring is the sample,
# and token i is first with probability p_i. Left: one race among the eight likeliest tokens, each
# bar as long as its clock runs. Right: how often each of them wins, against p.

# %%
names = [repr(tokenizer.token_text(token)) for token in best[:8]]
p = rows[0][best[:8]] / rows[0][best[:8]].sum()
generator = torch.Generator().manual_seed(95)
rings = torch.empty(4000, len(p)).exponential_(generator=generator) / p
wins = torch.bincount(rings.argmin(dim=-1), minlength=len(p)) / len(rings)

_, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
ax = axes(left, 0, 0)
first = int(rings[0].argmin())
ax.barh(range(8), rings[0], color=[hue(1) if i == first else hue(0) for i in range(8)])
ax.set_yticks(range(8), names)
ax.set_ylim(7.6, -0.6)
label(ax, f"one race: {names[first]} rings first", "time until the clock rings", None)
ax = axes(right, 0, 0)
ax.barh(range(8), 100 * wins, color=hue(0), height=0.55, label="share of 4,000 races won")
ax.plot(100 * p, range(8), ls="", marker="|", ms=16, mew=2, color=INK, label="p")
ax.legend(frameon=False, labelcolor=INK, fontsize=9)
label(ax, "4,000 races", "%", None)

# %% [markdown]
# `torch.multinomial` runs the same race, over the whole vocabulary in order of ids. So a seeded
# request gives the tokens that `multinomial` draws after `torch.manual_seed` with the same seed:

# %%
params = SamplingParams(temperature=0.8, top_p=0.9, seed=11, max_tokens=8, ignore_eos=True)
drawn = engine.generate(PROMPT, params)[0].outputs[0].token_ids

ids = tokenizer.encode(PROMPT)
torch.manual_seed(11)
for _ in range(8):
    row = sampling_distribution(next_token_logits(engine.model, ids)[None], [params])
    ids.append(int(torch.multinomial(row, 1)))

assert list(drawn) == ids[-8:]
print(PROMPT + tokenizer.decode(drawn))

# %% [markdown]
# ## One engine step a cell
#
# `stream` computes nothing until it is asked for the next token. The first `next` is the prefill:
# 37 prompt tokens in, one id out. `engine.trace` has one record per step.


# %%
def show(step):
    """Print what one step computed and sampled."""
    (part,) = step.slices
    where = f"positions {part.start}…{part.start + part.num_tokens - 1}"
    sampled = [tokenizer.token_text(token) for token in part.token_ids]
    print(f"{part.phase}: {part.num_tokens} tokens at {where}, sampled {sampled}")
    print(step.summary())


chat = [{"role": "user", "content": "What is the capital of France?"}]
stream = engine.stream(chat, SamplingParams(temperature=0, max_tokens=8))
output = next(stream)
show(engine.trace[-1])

# %%
# The next step computes one token: the id that was sampled last. Run this cell again for more.
output = next(stream)
show(engine.trace[-1])
print(f"text so far: {output.outputs[0].text!r}")

# %%
# The rest. The request before it had to end first: M1 serves one at a time.
*_, output = stream
show(engine.trace[-1])
print(output.outputs[0].text)
_ = step_timeline(engine.trace)

# %% [markdown]
# ## What the cache is worth on this machine
#
# The same decode step after prompts of several lengths, with the cache and without it. The dashed
# line is the floor: what a cached step has to read (all weights, the context's KV), over the
# bandwidth of a copy on this machine, all on one core. Times are read from the trace.

# %%
plain = LLMEngine("smollm2", device="cpu", max_model_len=512, use_cache=False, trace=True)
PAIR = {"with the cache": engine, "without it": plain}


def step_ms(one, length):
    """The faster of two decode steps after a prompt of ``length`` tokens, in ms."""
    prompt = torch.arange(length) * 7 % 40_000 + 100
    one.generate(prompt.tolist(), SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
    return min(step.elapsed_ms for step in one.trace.steps[-2:])


lengths = (16, 48, 96, 192)
curves = {name: {n: step_ms(one, n) for n in lengths} for name, one in PAIR.items()}
bandwidth = measured_bandwidth("cpu").value
floor = {n: 1e3 * decode_bytes(config, 1, n, "float32") / bandwidth for n in lengths}
_ = line_with_floor(
    curves, floor, xlabel="tokens in the sequence", ylabel="one decode step (ms)",
    floor_label="floor at copy bandwidth",
)  # fmt: skip

# %%
# The claim: the cache changes no token, and removes exactly the recomputation.
answers, forwards = {}, {}
for name, one in PAIR.items():
    (output,) = one.generate(chat, SamplingParams(temperature=0, max_tokens=8))
    answers[name] = output.outputs[0].token_ids
    parts = [part for step in one.trace for part in step.slices]
    mine = [part for part in parts if part.request_id == output.request_id]
    forwards[name] = sum(part.num_tokens for part in mine)

assert answers["with the cache"] == answers["without it"]
assert forwards["with the cache"] == token_forwards(37, 8, use_cache=True)
assert forwards["without it"] == token_forwards(37, 8, use_cache=False)
print(f"the same {len(answers['without it'])} ids; token forwards: {forwards}")
