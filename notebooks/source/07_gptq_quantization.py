# %% [markdown]
# # 07 · GPTQ, one column at a time
#
# A real layer of SmolLM2 is quantised to four bits, column by column, by hand: you can stop the
# loop at any column and look. Round-to-nearest runs beside it. Then the file format's +1 trap on
# the same layer, and what four bits do to the bytes of Qwen3-0.6B. The weights that come with this
# project are Q4_1 already (groups of 32, dequantised), so the "floats" below are those. The reasons
# are in [note 07](../docs/learn/07_gptq_quantization.md).

# %%
import warnings

import matplotlib.pyplot as plt
import torch

from common.hub import resolve_model
from common.model_costs import gptq_bits_per_weight, parameter_counts
from common.plot_style import axes, hue, label, legend
from common.qwen3 import QWEN3_0_6B as MODEL
from m0_init.loader import load
from m1_basic.attention import UncachedAttend
from m7_gptq.hessian import Hessian, inverse_factor, output_error, row_energy
from m7_gptq.packing import pack_zeros, unpack_zeros
from m7_gptq.quantizer import QuantSpec, choose_grid, gptq, quantise, round_to_nearest
from m7_gptq.texts import CALIBRATION, EVALUATION, token_batches

warnings.filterwarnings("ignore", message="IProgress not found")  # a progress bar we do not need
torch.set_num_threads(1)
_ = torch.set_grad_enabled(False)
smollm2 = load(resolve_model("smollm2"), dtype="float32", device="cpu")

# %% [markdown]
# ## What the layer sees
#
# The objective needs the layer's inputs and nothing else: H is the mean of x · xᵀ over the tokens
# of a text. A hook in front of q, k and v (they share their input) collects it. Three texts: the
# one that GPTQ may look at, a second of the same kind, and one of another kind.

# %%
# Change me: another layer (0 … 29), groups of 32, act-order, another damping.
LAYER = 0
SPEC = QuantSpec(bits=4, group_size=64, sym=True, desc_act=False, damp=0.05)


def hessian_of(text):
    """H of the inputs of q, k and v, over 8 samples of 128 tokens."""
    linear = smollm2.model.layers[LAYER].attn.qkv
    seen = Hessian(linear.weight.shape[1])
    hook = linear.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0]))
    for ids in token_batches(smollm2.tokenizer, text.read(), num_samples=8, seq_len=128):
        smollm2.model(torch.tensor(ids), torch.arange(128), UncachedAttend())
    hook.remove()
    return seen.matrix()


H = hessian_of(CALIBRATION)
OTHER = {f"{name} text": hessian_of(text) for name, text in EVALUATION.items()}
W = smollm2.model.layers[LAYER].attn.qkv.weight.data[: smollm2.config.q_size].float()
diagonal = H.diagonal().sort(descending=True).values
print(f"q of layer {LAYER}: W {list(W.shape)}, H {list(H.shape)}")
print(f"mean square of the loudest input: {diagonal[0] / diagonal.mean():.0f} times the average")
share = float(torch.linalg.eigvalsh(H)[-2:].sum() / H.trace())
print(f"share of two directions, of {len(H)}, in all activations: {share:.0%}")

# %% [markdown]
# ## The loop
#
# GPTQ without its one optimisation (lazy updates of blocks), so that it fits a cell. `upper` is the
# Cholesky factor of the inverse of H. Its row j holds what column j's error does to those behind.
# Round-to-nearest is the same loop without the last line.


# %%
def quantise_columns(stop, move=True):
    """W after `stop` columns: those are on the grid, the others are still floats."""
    order = torch.arange(W.shape[1])
    if SPEC.desc_act:
        order = H.diagonal().argsort(descending=True, stable=True)
    upper = inverse_factor(H[order][:, order], SPEC.damp).float()
    w, group = W[:, order].clone(), SPEC.group(W.shape[1])
    for j in range(stop):
        if j % group == 0:
            grid = choose_grid(w[:, j : j + group], SPEC)
            scale, zero = (part.float() for part in grid)
        rounded = (quantise(w[:, j], scale, zero, SPEC.bits) - zero) * scale
        error = (w[:, j] - rounded) / upper[j, j]
        w[:, j] = rounded
        if move:
            w[:, j + 1 :] -= torch.outer(error, upper[j, j + 1 :])
    return w[:, order.argsort()]


def relative_error(approximation, hessian=H):
    """E‖Wx − Ŵx‖² / E‖Wx‖² on the activations that made `hessian`."""
    return float(output_error(W, approximation, hessian).sum() / row_energy(W, hessian).sum())


STOPS = [0, *range(32, W.shape[1] + 1, 32)]
methods = {"round-to-nearest": False, "GPTQ": True}
states = {name: {n: quantise_columns(n, move) for n in STOPS} for name, move in methods.items()}
last = STOPS[-1]
for name, by_stop in states.items():
    print(f"{name}: output error {relative_error(by_stop[last]):.4%}")

# %% [markdown]
# ## Weights and output
#
# Above: |W − Ŵ| of the first 96 rows, after a third, two thirds and all of the columns. With
# round-to-nearest every column is as wrong as its own rounding. With GPTQ the columns to the right
# move away from W before they are rounded, further and further: **its weights are more wrong, not
# less.** (Dark is far from W; both rows have one scale.)
#
# Below: the error of the layer's output if the loop stopped there and the rest stayed as it is,
# and beside it the distance of the weights. Inputs of a layer are correlated, so a free column can
# take over what a rounded one lost, as long as there are free columns.

# %%
shown = [192, 384, last]
limit = float((W - states["GPTQ"][last]).abs()[:96].quantile(0.99))
figure, panels = plt.subplots(2, 3, figsize=(9, 3.8), layout="constrained", sharex=True)
for row, (name, by_stop) in zip(panels, states.items(), strict=True):
    for panel, stop in zip(row, shown, strict=True):
        ax = axes(panel, 0, 0)
        change = (W - by_stop[stop]).abs()[:96]
        image = ax.imshow(change, cmap="cividis_r", vmin=0, vmax=limit, aspect="auto")
        ax.axvline(stop, color=hue(3), lw=1.5)
        label(ax, f"{name}, {stop} columns", None, None)
bar = axes(figure.colorbar(image, ax=panels).ax, 0, 0)
label(bar, None, None, "|W − Ŵ|")

_, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for number, (name, by_stop) in enumerate(states.items()):
    errors = [relative_error(by_stop[n]) for n in STOPS]
    distances = [float((W - by_stop[n]).square().mean().sqrt()) for n in STOPS]
    axes(left, 0, 0).plot(STOPS, errors, "so"[number] + "-", color=hue(1 - number), label=name)
    axes(right, 0, 0).plot(STOPS, distances, "so"[number] + "-", color=hue(1 - number), label=name)
label(left, None, "columns quantised", "output error, share of the output")
label(right, None, "columns quantised", "root mean square of W − Ŵ")
legend(left)
legend(right)

# %% [markdown]
# ## On text that it has not seen, and with other settings
#
# The free columns were moved to please one H. Round-to-nearest has never looked at any. So its
# error is about the same on every text, and GPTQ's grows with the distance from the calibration
# text. This is one layer; whole models and perplexities are in the note.
#
# The second table is the stage's own quantiser. It gives the integers of the loop above and works
# in blocks: inside a block columns are updated one by one, behind it by one matrix product.

# %%
print(f"{'':20}{'round-to-nearest':>18}{'GPTQ':>10}{'ratio':>8}")
ratios = {}
for name, hessian in {"calibration text": H, **OTHER}.items():
    plain, ours = (relative_error(by_stop[last], hessian) for by_stop in states.values())
    ratios[name] = ours / plain
    print(f"{name:20}{plain:18.4%}{ours:10.4%}{ours / plain:8.2f}")

made = gptq(W, H, SPEC)
same = float((made.dequantised() == states["GPTQ"][last]).float().mean())
print(f"equal to the loop above: {same:.2%} of all weights")
print(f"{'':24}{'bits a weight':>14}{'round-to-nearest':>18}{'GPTQ':>10}")
for title, changes in {
    "4 bits, one group": {"group_size": -1},
    "4 bits, groups of 64": {"group_size": 64},
    "  and act-order": {"group_size": 64, "desc_act": True},
    "4 bits, groups of 32": {"group_size": 32},
    "8 bits, groups of 64": {"bits": 8, "group_size": 64},
}.items():
    spec = QuantSpec(**{"damp": SPEC.damp, **changes})
    bits = gptq_bits_per_weight(spec.group(W.shape[1]), spec.bits)
    plain, ours = (
        relative_error(method(W, H, spec).dequantised()) for method in (round_to_nearest, gptq)
    )
    print(f"{title:24}{bits:14.3f}{plain:18.4%}{ours:10.4%}")

# %% [markdown]
# ## The +1 trap
#
# Version 1 of the file format stores a zero point minus one, version 2 stores it as it is. The
# integers and scales are the same, the shapes are the same, and nothing crashes if one is read as
# the other. Every weight is off by one scale, all in the same direction.

# %%
words = pack_zeros(made.zeros.T, SPEC.bits, "gptq")
right_zeros = unpack_zeros(words, SPEC.bits, "gptq").T
wrong_zeros = unpack_zeros(words, SPEC.bits, "gptq_v2").T
groups = made.g_idx.long()
misread = (made.ints.float() - wrong_zeros.float()[:, groups]) * made.scales.float()[:, groups]
shift = (misread - made.dequantised()) / made.scales.float()[:, groups]
print(f"first word of zero points: 0x{int(words[0, 0]) & 0xFFFFFFFF:08x}")
print(f"read as v1: {int(right_zeros[0, 0])}, read as v2: {int(wrong_zeros[0, 0])}")
print(f"shift of every weight, in scales: {float(shift.min()):g} … {float(shift.max()):g}")
error, wrong = (relative_error(each) for each in (made.dequantised(), misread))
print(f"output error: {error:.4%}, misread {wrong:.1%}")

# %% [markdown]
# ## Bytes of Qwen3-0.6B
#
# The projections shrink to about a quarter. The embedding, which is also the output matrix, stays
# in bfloat16, so the model shrinks by a good half.

# %%
counts, grid_bits = parameter_counts(MODEL), gptq_bits_per_weight(128) - 4
sizes = {
    "MLP": (2 * counts.mlp, counts.mlp / 2),
    "attention's projections": (2 * counts.attention, counts.attention / 2),
    "scales and zero points": (0, counts.linear * grid_bits / 8),
    "embedding = lm_head": (2 * counts.embedding, 2 * counts.embedding),
    "norms": (2 * counts.norms, 2 * counts.norms),
}
print(f"{'MB':24}{'bfloat16':>10}{'4 bits, g128':>14}")
for name, (dense, packed) in sizes.items():
    print(f"{name:24}{dense / 1e6:10,.1f}{packed / 1e6:14,.1f}")
before, after = (sum(column) for column in zip(*sizes.values(), strict=True))
print(f"{'all':24}{before / 1e6:10,.1f}{after / 1e6:14,.1f}   {after / before - 1:+.0%}")

# %%
# The claims: GPTQ's output error is below round-to-nearest's on the calibration Hessian although
# its weights are further from W; the loop of this page is the stage's quantiser; a misread zero
# point moves every weight by exactly one scale.
finals = {name: by_stop[last] for name, by_stop in states.items()}
assert relative_error(finals["GPTQ"]) < relative_error(finals["round-to-nearest"])
assert (W - finals["GPTQ"]).square().mean() > (W - finals["round-to-nearest"]).square().mean()
assert torch.equal(finals["round-to-nearest"], round_to_nearest(W, H, SPEC).dequantised())
assert same > 0.99  # the order of float32 sums decides ties
assert torch.equal(right_zeros, made.zeros)
assert torch.allclose(shift, torch.ones_like(shift), atol=1e-3)
assert wrong > 10 * error
print("less error in the output, more in the weights, and one that no shape gives away")
