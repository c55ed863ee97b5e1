# %% [markdown]
# # 00 · A checkpoint, and proof that the model is right
#
# A checkpoint is a dictionary from names to arrays. This notebook opens one by hand, counts
# Qwen3-0.6B, divides a device's memory, and then does what every later stage relies on: it
# compares the residual stream with transformers' after **every layer**, breaks the model on
# purpose, and looks at where the difference lights up.
# The reasons are in [note 00](../docs/learn/00_project_setup.md).
#
# Everything runs on a random Qwen3 of 28 layers, written by transformers itself. It is tiny
# (hidden size 64), has 4 query heads on 2 KV heads, and heads of 32, which is *not* 64 / 4. Its
# norm weights are drawn around one, because weights of exactly one hide a mistake that we want to
# see.
#
# ## The file
#
# safetensors is eight bytes of header length, a JSON header, and then the tensors back to back.
# Reading one tensor means reading a range of bytes; nothing is executed.

# %%
import json
import struct
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from common.charts import heatmap
from common.devices import GIB, format_bytes
from common.errors import CheckpointError
from common.model.linear import dense_linear_factory
from common.model.ops import TorchOps
from common.model.transformer import Transformer
from common.model.weights import load_weights
from common.model_config import ModelConfig
from common.model_costs import kv_bytes, parameter_counts
from common.plot_style import axes, hue, label
from common.qwen3 import QWEN3_0_6B
from common.rope_config import RopeConfig
from common.testing.checkpoints import tiny_config, write_checkpoint
from common.testing.oracle import HFOracle
from m0_init.forward import layer_states
from m0_init.memory_plan import parts_of_weights, plan_memory

warnings.filterwarnings("ignore", message="IProgress not found")  # a progress bar we do not need

folder = Path(tempfile.mkdtemp()) / "tiny-qwen3"
write_checkpoint(folder, tiny_config("qwen3", layers=28, rope_theta=1e6), seed=1)

data = (folder / "model.safetensors").read_bytes()
(length,) = struct.unpack("<Q", data[:8])
header = json.loads(data[8 : 8 + length])
tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
first_layer = ("model.embed", "model.layers.0.", "model.norm")
print(
    f"{len(data):,} bytes = 8 + {length:,} of header + {len(data) - 8 - length:,} of tensors",
    f"{len(tensors)} tensors = 2 + 28 layers of 11\n",
    *(
        f"{n:48} {e['dtype']} {e['shape']}"
        for n, e in sorted(tensors.items())
        if n.startswith(first_layer)
    ),
    sep="\n",
)

# %% [markdown]
# There is no `lm_head.weight`: the config ties it to the embedding. `q_proj` has 4 · 32 = 128
# rows, not 64: **the width of a head is a number of its own**.
#
# ## Qwen3-0.6B, counted and placed
#
# The same eleven tensors a layer, at full size: `by_hand` multiplies shapes, and the sheet that
# all notes quote must agree. The cell after it divides a device between these weights and what
# runs beside them. The KV pool is what is left, so a larger step or float32 weights cost context.

# %%
hidden, inner, heads, kv_heads, head_dim, vocab = 1024, 3072, 16, 8, 128, 151_936
q, kv = heads * head_dim, kv_heads * head_dim
attention = hidden * q + 2 * hidden * kv + q * hidden
mlp = 3 * hidden * inner
norms = 2 * hidden + 2 * head_dim
by_hand = vocab * hidden + 28 * (attention + mlp + norms) + hidden
halved = replace(QWEN3_0_6B, head_dim=hidden // heads)
print(
    f"a layer: {attention:,} attention + {mlp:,} MLP + {norms:,} norms\n"
    f"all:     {by_hand:,} parameters, {2 * by_hand:,} bytes in bfloat16\n"
    f"KV:      {kv_bytes(QWEN3_0_6B):,} bytes per token\n"
    f"with head_dim = 1024 / 16 = 64: {parameter_counts(halved).total:,} parameters, "
    f"{kv_bytes(halved):,} bytes per token: both wrong"
)
assert by_hand == parameter_counts(QWEN3_0_6B).total

# %%
# Change me: the device, the largest step, the element type.
MEMORY_GIB, STEP_TOKENS, DTYPE = 8, 2048, "bfloat16"

plan = plan_memory(QWEN3_0_6B, MEMORY_GIB * GIB, num_batched_tokens=STEP_TOKENS, dtype=DTYPE)
bars = {f"weights: {k}": v for k, v in parts_of_weights(QWEN3_0_6B, DTYPE).items()}
bars |= {name: size for name, size in plan.parts().items() if name != "weights"}
ax, start = axes(None, 7.5, 3.2), 0.0
for row, (name, size) in enumerate(bars.items()):
    colour = hue(0 if name.startswith("weights") else row - 3)
    ax.barh(row, size / GIB, left=start, height=0.66, color=colour, fill=name != "not used")
    start += size / GIB
ax.set_yticks(range(len(bars)), [f"{k}, {format_bytes(v)}" for k, v in bars.items()])
ax.invert_yaxis()
label(ax, f"KV for {plan.num_tokens:,} tokens", "GiB", None)

# %% [markdown]
# ## The same numbers as transformers, after every layer
#
# `build` makes the model with whatever part we hand in, and `difference` compares its residual
# stream with transformers' for 16 tokens: one value per token and layer, the largest absolute
# difference as a share of the largest value of that layer. Column 0 is the embedding, the last
# one the logits.

# %%
config, ids = ModelConfig.from_pretrained(folder), range(16)


def build(where=folder, ops=None, **changes):
    """The checkpoint's model in float32; a field of the config or the ops may be wrong."""
    model = Transformer(
        replace(config, **changes),
        ops=ops or TorchOps(),
        linear=dense_linear_factory(torch.float32, "cpu"),
        dtype=torch.float32,
        device="cpu",
    )
    load_weights(model, where)
    return model.eval()


def difference(model, where=folder):
    """``[tokens, layers + 2]``: embedding, every layer, logits."""
    ours, theirs = layer_states(model, ids), HFOracle(where).hidden_states(ids)
    pairs = zip((*ours.hidden, ours.logits), (*theirs.hidden, theirs.logits), strict=True)
    columns = [(a - b).abs().amax(-1) / b.abs().max() for a, b in pairs]
    return torch.stack(columns, dim=1)


def show(matrix, rows, ylabel):
    """One row per token or per variant, one column per layer; exact zeros stay empty."""
    names = ["emb", *(str(i) if i % 4 == 0 and i < 28 else "" for i in range(1, 29)), "logits"]
    ax = axes(None, 8.6, 1.2 + max(0.19 * len(rows), 2.0))
    heatmap(
        matrix.tolist(), row_labels=rows, column_labels=names, log=True, ax=ax,
        value_label="share of the layer's maximum", xlabel="after layer", ylabel=ylabel,
    )  # fmt: skip


right = difference(build())
show(right, [str(i) for i in ids], "token")

# %% [markdown]
# Float32 carries about seven digits; what is left here is rounding. It grows a little on the way
# up, because every layer adds its own, and it stays far below the tolerance of 1e-4 that the
# tests use.
#
# ## Break the order
#
# Qwen3 normalises each head of q and k and then rotates it. Do it the other way round, through
# the same seam that M4 will use for its fused kernels.


# %%
class NormAfterRope(TorchOps):
    """QK-norm in the wrong place."""

    def qk_norm_rope(self, q, k, v, q_weight, k_weight, eps, cos_sin, sink):
        q, k = super().qk_norm_rope(q, k, v, None, None, eps, cos_sin, sink)  # rotate only
        return self.rms_norm(q, q_weight, eps), self.rms_norm(k, k_weight, eps)


swapped = difference(build(ops=NormAfterRope()))
show(swapped, [str(i) for i in ids], "token")

# %% [markdown]
# Layer 1 lights up at once, so the mistake is in the layer itself and not in some late addition.
# **Token 0 has not moved, not by one bit.** The first token can attend to itself only, its softmax
# has one entry, and that entry is 1 whatever q and k are. A test with a one-token prompt cannot see
# a mistake in q or k at all.
#
# Which mistakes look alike? Here are several on one scale, the largest difference over all
# tokens. `weights one` is the swapped order again, on a checkpoint whose norm weights are all
# exactly one.

# %%
from safetensors.torch import load_file, save_file


class NoQKNorm(TorchOps):
    """No QK-norm."""

    def qk_norm_rope(self, q, k, v, q_weight, k_weight, eps, cos_sin, sink):
        return super().qk_norm_rope(q, k, v, None, None, eps, cos_sin, sink)


ones = write_checkpoint(
    folder.with_name("ones"), tiny_config("qwen3", layers=28, rope_theta=1e6), seed=1
)
stored = load_file(ones / "model.safetensors")
stored = {n: torch.ones_like(t) if n.endswith("norm.weight") else t for n, t in stored.items()}
save_file(stored, ones / "model.safetensors", metadata={"format": "pt"})

variants = {
    "as stored": right,
    "norm after RoPE": swapped,
    "norm after RoPE, weights one": difference(build(ones, NormAfterRope()), ones),
    "no QK-norm": difference(build(ops=NoQKNorm())),
    "theta 10,000": difference(build(rope=RopeConfig(10_000.0))),
    "norm epsilon 1e-5": difference(build(rms_norm_eps=1e-5)),
}
show(torch.stack([matrix.amax(0) for matrix in variants.values()]), list(variants), None)

# %% [markdown]
# With weights of one the swapped order is **the same function**: a rotation does not change the
# length of a vector, so dividing by the length before or after it is equal. Only a weight that
# differs inside a rotated pair tells the orders apart. That is why a test checkpoint must not
# keep the ones it is born with, and why this mistake survives a test on an untrained model.
#
# ## The width of a head
#
# Take the width that many write from memory, `hidden / heads`. Every shape is checked, so the
# loader names the first tensor that does not fit.


# %%
def refusal(**changes):
    """What loading says."""
    try:
        build(**changes)
    except CheckpointError as error:
        return str(error).replace(str(folder), "the folder")
    return "nothing"


said = {
    "head_dim = hidden / heads": refusal(head_dim=16),
    "a config without QK-norm": refusal(qk_norm=False),
    "an lm_head of its own": refusal(tie_word_embeddings=False),
    "theta 10,000": refusal(rope=RopeConfig(10_000.0)),
}
print("\n".join(f"{what}\n    {answer}" for what, answer in said.items()))

# %% [markdown]
# A wrong shape, a missing tensor or one too many can be refused. A wrong number cannot: theta
# loads without a word, and only the comparison finds it.
#
# ## The claim
#
# Hidden states after every layer, and the logits, equal transformers' within 1e-4 of the layer's
# largest value; and the comparison can fail.

# %%
assert right.max() < 1e-4
assert variants["norm after RoPE, weights one"].max() < 1e-4
for name in ("norm after RoPE", "no QK-norm", "theta 10,000"):
    assert variants[name][:, 1].max() > 1e-2, f"{name} must show after layer 1"
    assert torch.equal(variants[name][0], right[0]), f"{name} must not touch token 0"
assert "expected (16,)" in refusal(head_dim=16)
print(f"largest difference anywhere: {right.max():.1e} of the layer's maximum")
