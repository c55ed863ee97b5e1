# %% [markdown]
# # 04 · Flash attention, one tile at a time
#
# The online softmax on eight numbers, what naive attention keeps in memory, the roofline of a
# decode layer, and the M4 engine with our Triton kernels, all on a CPU: without a GPU, Triton
# interprets its kernels, which is slow and exact. No cell measures a kernel on a GPU. The reasons
# are in [note 04](../docs/learn/04_flash_attention.md).

# %%
import os
import tempfile
import time
import warnings
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported

import matplotlib.pyplot as plt
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from common.devices import DEVICES
from common.plot_style import axes, hue, label, legend
from common.qwen3 import QWEN3_0_6B as MODEL
from common.request import SamplingParams
from common.testing.checkpoints import tiny_config, write_checkpoint
from m1_basic.attention import naive_attention
from m3_paged.engine import LLMEngine as M3Engine
from m4_flash.backends.sdpa import SdpaBackend
from m4_flash.engine import LLMEngine
from m4_flash.input_batch import HEADER
from m4_flash.kernels.decode import flash_decode
from m4_flash.kernels.prefill import flash_prefill_contiguous

warnings.filterwarnings("ignore", message="IProgress not found")  # a progress bar we do not need
torch.set_num_threads(1)
_ = torch.manual_seed(0)

# %% [markdown]
# ## The online softmax on eight numbers
#
# One query, eight scores, one number as each value. Three numbers are kept: the largest score so
# far m, the sum l of `exp(score − m)`, and the same sum weighted by the values, O. A tile with a
# larger maximum rescales l and O by `exp(m_old − m_new)`. At the end the result is O / l.

# %%
# Change me: other scores, other tiles (1 is one key at a time, 8 is the ordinary softmax).
SCORES = torch.tensor([1.0, 2.0, 0.0, 1.0, 4.0, 3.0, 2.0, 4.0])
VALUES = torch.arange(1.0, 9.0)
TILE = 2

m, total, acc = torch.tensor(-float("inf")), torch.tensor(0.0), torch.tensor(0.0)
print("tile          scores     m  rescale       l        O")
for first in range(0, 8, TILE):
    tile = slice(first, first + TILE)
    new_m = torch.maximum(m, SCORES[tile].max())
    rescale = torch.exp(m - new_m)
    weights = torch.exp(SCORES[tile] - new_m)
    total = total * rescale + weights.sum()
    acc = acc * rescale + weights @ VALUES[tile]
    m = new_m
    shown = " ".join(f"{score:g}" for score in SCORES[tile].tolist())
    print(f"{first}…{first + TILE - 1} {shown:>15} {m:5.1f} {rescale:8.3f} {total:7.3f} {acc:8.3f}")
print(f"O / l = {acc / total:.6f}, softmax(scores) · values = {SCORES.softmax(0) @ VALUES:.6f}")

# %% [markdown]
# ## Two halves, merged
#
# For one query against a long past, a GPU splits the keys among programs that do not know each
# other. Each leaves its own result o and the logarithm L of its sum; a merge weighs them by
# `exp(L)`. The same formula again, with parts in the place of keys.

# %%
parts = [(SCORES[:5], VALUES[:5]), (SCORES[5:], VALUES[5:])]
logs = torch.stack([scores.logsumexp(0) for scores, _ in parts])
outs = torch.stack([scores.softmax(0) @ values for scores, values in parts])
merged = logs.softmax(0) @ outs
for (scores, _), log, out in zip(parts, logs, outs, strict=True):
    print(f"{len(scores)} keys: o = {out:.3f}, L = {log:.3f}")
print(f"merged: {merged:.6f}")

# %% [markdown]
# ## What an operator leaves in memory
#
# Attention of one layer of Qwen3-0.6B in float32, written out and through PyTorch's tiled kernel.
# The mode below sees every operator and remembers the largest tensor that one of them made.


# %%
class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that an operator returned."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(part, torch.Tensor):
                self.nbytes = max(self.nbytes, part.nbytes)
        return out


def sizes(length):
    shapes = (MODEL.num_heads, MODEL.num_kv_heads, MODEL.num_kv_heads)
    return tuple(torch.randn(length, heads, MODEL.head_dim) for heads in shapes)


WAYS = {
    "naive": lambda q, k, v: naive_attention(q, k, v, MODEL.head_dim**-0.5),
    "sdpa": SdpaBackend.prompt_attention,
}
LENGTHS = (128, 256, 512, 1024)
largest, seconds = {name: {} for name in WAYS}, {name: {} for name in WAYS}
for length in LENGTHS:
    for name, attend in WAYS.items():
        inputs = sizes(length)
        with torch.no_grad(), Largest() as seen:
            attend(*inputs)
        begin = time.perf_counter()
        with torch.no_grad():
            attend(*inputs)
        seconds[name][length] = time.perf_counter() - begin
        largest[name][length] = seen.nbytes
print("tokens    largest tensor, MiB            time, ms")
print("           naive        sdpa         naive        sdpa")
for length in LENGTHS:
    bytes_ = "".join(f"{largest[name][length] / 2**20:12.1f}" for name in WAYS)
    times = "".join(f"{1e3 * seconds[name][length]:12.1f}" for name in WAYS)
    print(f"{length:6}{bytes_}  {times}")

_, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for number, name in enumerate(WAYS):
    for panel, unit, data in ((left, 2**20, largest), (right, 1e-3, seconds)):
        heights = [data[name][length] / unit for length in LENGTHS]
        axes(panel, 0, 0).plot(LENGTHS, heights, "o-", color=hue(number), label=name)
label(left, None, "tokens in the prompt", "largest tensor (MiB)")
label(right, None, "tokens in the prompt", "one layer's attention (ms)")
for panel in (left, right):
    panel.set_ylim(bottom=0)
legend(left)

# %% [markdown]
# ## Our kernels against the written-out formula
#
# Interpreted, so for the numbers only. The first call is a prompt of 37 tokens, which is no
# multiple of any tile. The second is one query per sequence over blocks of 16, with four places per
# sequence: the long context is cut into parts, the short ones are not. Blocks lie anywhere in the
# pool; places without a token hold NaN, and entries behind a table's end name no block at all.

# %%
q, k, v = sizes(37)
scale = MODEL.head_dim**-0.5
out = torch.empty_like(q)
flash_prefill_contiguous(q, k, v, torch.tensor([0, 37], dtype=torch.int32), scale, out)
prefill_error = (out - naive_attention(q, k, v, scale)).abs().max().item()

contexts = [300, 5, 40]
pool = torch.full((2, 40, 16, MODEL.num_kv_heads, MODEL.head_dim), float("nan"))
tables = torch.full((3, 19), 999, dtype=torch.int32)
order, taken = torch.randperm(40).int(), 0
expected, queries = [], torch.randn(3, MODEL.num_heads, MODEL.head_dim)
for row, context in enumerate(contexts):
    count = -(-context // 16)
    tables[row, :count] = order[taken : taken + count]
    taken += count
    _, keys, values = sizes(context)
    for place in range(context):
        block = int(tables[row, place // 16])
        pool[0, block, place % 16], pool[1, block, place % 16] = keys[place], values[place]
    expected.append(naive_attention(queries[row : row + 1], keys, values, scale))
out = torch.empty_like(queries)
lens = torch.tensor(contexts, dtype=torch.int32)
flash_decode(queries, pool[0], pool[1], tables, lens, None, scale, out, splits=4)
decode_error = (out - torch.cat(expected)).abs().max().item()
print(f"largest difference: prefill {prefill_error:.1e}, decode {decode_error:.1e}")

# %% [markdown]
# ## The roofline of one decode layer
#
# Every part of a layer reads bytes and computes with them. FLOPs per byte say which limit holds:
# below the ridge of a device it waits for memory. A larger batch moves the matrix products to the
# right, because all sequences share the weights. Attention stays where it is: every sequence reads
# a past of its own, and each key serves only the query heads that share it.

# %%
CONTEXT, BF16 = 1024, 2
hidden, kv_width = MODEL.hidden_size, MODEL.num_kv_heads * MODEL.head_dim
q_width = MODEL.num_heads * MODEL.head_dim
weights = {
    "qkv": hidden * (q_width + 2 * kv_width),
    "o": q_width * hidden,
    "gate and up": 2 * hidden * MODEL.intermediate_size,
    "down": MODEL.intermediate_size * hidden,
}
device = DEVICES["h100"]
print(f"FLOP per byte at context {CONTEXT} (ridge of an H100: {device.ridge:.0f})")
intensity = {name: {} for name in (*weights, "attention")}
for batch in (1, 16, 64, 256, 1024):
    for name, count in weights.items():
        intensity[name][batch] = 2 * count * batch / (count * BF16)
    keys = batch * CONTEXT
    intensity["attention"][batch] = 4 * q_width * keys / (2 * kv_width * keys * BF16)
for name, row in intensity.items():
    print(f"{name:12}", *(f"batch {batch}: {value:g}" for batch, value in row.items()), sep="  ")

_, ax = plt.subplots(figsize=(6, 3), layout="constrained")
axes(ax, 0, 0)
xs = [1, device.ridge, 2000]
roof = [min(x * device.spec_bandwidth, device.spec_flops) / 1e12 for x in xs]
ax.plot(xs, roof, color=hue(0), label="H100, data sheet")
for number, (name, marker) in enumerate((("qkv", "o"), ("attention", "s")), start=1):
    points = list(intensity[name].values())
    heights = [min(x * device.spec_bandwidth, device.spec_flops) / 1e12 for x in points]
    ax.plot(points, heights, marker, color=hue(number), label=f"{name}, batch 1 to 1,024")
ax.set(xscale="log", yscale="log")
label(ax, None, "FLOP per byte (weights and K, V)", "TFLOP/s at most")
legend(ax)

# %% [markdown]
# ## A step of the engine
#
# A tiny random Qwen3 with the Triton backend. A CPU can record no CUDA graph, so a null graph
# stands in: same buckets, same padding, same buffers that never move, and the function runs again
# instead of a replay.

# %%
folder = Path(tempfile.mkdtemp()) / "tiny-qwen3"
write_checkpoint(folder, tiny_config("qwen3", layers=2), seed=1)


def show(engine):
    """Print the last step and the header that the host sent for it."""
    step = engine.trace[-1]
    print(step.summary())
    for name, row in zip(HEADER, engine.runner.batch.header, strict=True):
        print(f"    {name:7} {row.tolist()}")


options = {"device": "cpu", "max_num_seqs": 3, "max_model_len": 64, "num_blocks": 16, "trace": True}
engine = LLMEngine(folder, attention_backend="triton", **options)
greedy = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
PROMPTS = [list(b"tiles"), list(b"a longer prompt")]
buckets = engine.runner.graphs.buckets.all()
print("recorded, as tokens/sequences:", *(f"{b.num_tokens}/{b.num_seqs}" for b in buckets))

# %%
# Two prompts, 20 tokens: the smallest bucket has 32 places. The header tells the device who
# computes what; ids, positions, slots and lengths are arithmetic on the device.
for prompt in PROMPTS:
    engine.add_request(prompt, greedy)
engine.step()
show(engine)

# %%
# A decode step. What changed is one number per sequence: where it starts. The ids to compute were
# written into the rows by the step before. Run the cell again for the next one.
engine.step()
show(engine)

# %%
batch = engine.runner.batch
for row in range(2):
    print(f"row {row}: ids {batch.sampling.token_ids[row, :20].tolist()}")
    print(f"       blocks {batch.block_tables[row].tolist()}")

# %%
# The claims: a softmax can be summed tile by tile and part by part; the kernels compute the
# formula; no score matrix exists; and the engine's tokens are those of M3.
while engine.has_unfinished_requests():
    engine.step()
ours = [engine.trace.output_token_ids(number) for number in range(len(PROMPTS))]
plain = M3Engine(folder, **options).generate(PROMPTS, greedy)

exact = SCORES.softmax(0) @ VALUES
assert torch.allclose(acc / total, exact)
assert torch.allclose(merged, exact)
assert max(prefill_error, decode_error) < 1e-5
assert largest["naive"][1024] == MODEL.num_heads * 1024 * 1024 * 4
assert largest["sdpa"][1024] <= 1024 * MODEL.num_heads * MODEL.head_dim * 4
assert ours == [tuple(output.outputs[0].token_ids) for output in plain]
print("eight numbers, two kernels and one engine agree with the formula and with M3")
