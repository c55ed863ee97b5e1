"""Break one thing at a time, and see what notices: the text, one token, or every layer.

    python m0_init/examples/break_one_thing.py

Each mistake is a common one of people who write a decoder from a paper. It enters through a seam of
the model (a field of the config, an op, the attention), so the rest of the code stays as it is.
Differences are to transformers in float32, as a share of the largest value of the layer.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import CheckpointError
from common.hub import resolve_model
from common.model.interfaces import Attend, KVSink
from common.model.linear import dense_linear_factory
from common.model.ops import TorchOps, apply_rope
from common.model.transformer import Transformer
from common.model.weights import load_weights
from common.model_config import ModelConfig
from common.rope_config import RopeConfig
from common.testing.checkpoints import tiny_config, write_checkpoint
from common.testing.oracle import HFOracle, OracleStates
from common.tokenizer import Tokenizer
from m0_init.forward import FullAttend
from m0_init.report_text import table

PROMPT = "The capital of France is"


class NoQKNorm(TorchOps):
    """Forgets the norms of q and k."""

    def qk_norm_rope(
        self, q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None,
        eps: float, cos_sin: Tensor, sink: KVSink | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Rotate only."""
        return super().qk_norm_rope(q, k, v, None, None, eps, cos_sin, sink)


class NormAfterRope(TorchOps):
    """Has the norms of q and k, in the wrong place."""

    def qk_norm_rope(
        self, q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None,
        eps: float, cos_sin: Tensor, sink: KVSink | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Rotate, then normalise."""
        q, k = super().qk_norm_rope(q, k, v, None, None, eps, cos_sin, sink)
        assert q_weight is not None
        assert k_weight is not None
        return self.rms_norm(q, q_weight, eps), self.rms_norm(k, k_weight, eps)


class NeighbourPairs(TorchOps):
    """Rotates element 0 with 1, as the RoPE paper does; the weights are made for 0 with d/2."""

    def qk_norm_rope(
        self, q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None,
        eps: float, cos_sin: Tensor, sink: KVSink | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Rotate neighbours; for models without QK-norm."""
        return _rotate_neighbours(q, cos_sin), _rotate_neighbours(k, cos_sin)


def _rotate_neighbours(x: Tensor, cos_sin: Tensor) -> Tensor:
    halves = torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)
    return torch.stack(apply_rope(halves, cos_sin).chunk(2, dim=-1), dim=-1).flatten(-2)


class SwappedGate(TorchOps):
    """Puts gate where up belongs: both matrices have the same shape."""

    def mlp_gate_up(self, gate_up: nn.Module, x: Tensor) -> Tensor:
        """``gate · silu(up)``."""
        gate, up = gate_up(x)
        result: Tensor = gate * F.silu(up)
        return result


class TiledHeads(FullAttend):
    """Lays the KV heads out as 0 1 2 0 1 2, where the query heads expect 0 0 1 1 2 2."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with the wrong partner heads."""
        group = q.shape[1] // k.shape[1]
        return super().__call__(layer, q, k.repeat(1, group, 1), v.repeat(1, group, 1))


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong.

    Attributes:
        name: In a few words.
        config: Fields of the model config, replaced.
        ops: The numeric ops.
        attend: The attention.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    ops: TorchOps = field(default_factory=TorchOps)
    attend: Attend = field(default_factory=FullAttend)


NONE = Mistake("none")
IN_EVERY_FAMILY = (
    NONE,
    Mistake("norm epsilon × 10", {"rms_norm_eps": 1e-4}),
    Mistake("rope theta 10,000", {"rope": RopeConfig(10_000.0)}),
    Mistake("RoPE on neighbours", ops=NeighbourPairs()),
    Mistake("KV heads tiled", attend=TiledHeads()),
    Mistake("gate, up swapped", ops=SwappedGate()),
)
IN_QWEN3 = (
    NONE,
    Mistake("no QK-norm", ops=NoQKNorm()),
    Mistake("QK-norm after RoPE", ops=NormAfterRope()),
)


def main() -> None:
    """Run all mistakes on two checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--smoke", action="store_true", help="fewer mistakes and tokens")
    smoke = parser.parse_args().smoke
    torch.set_grad_enabled(False)
    folder = resolve_model("smollm2")
    tokenizer = Tokenizer.from_pretrained(folder)
    ids = tokenizer.encode(PROMPT)
    print(f"SmolLM2-135M after {PROMPT!r}")
    mistakes = IN_EVERY_FAMILY[:2] if smoke else IN_EVERY_FAMILY
    show(folder, mistakes, ids, tokenizer, num_tokens=2 if smoke else 6)

    layers = 2 if smoke else 28
    config = tiny_config("qwen3", layers=layers, rope_theta=1e6)
    with tempfile.TemporaryDirectory() as name:
        drawn = write_checkpoint(Path(name) / "drawn", config, seed=1)
        print(f"\nA random Qwen3 of {layers} layers, norm weights drawn around one")
        show(drawn, IN_QWEN3, range(16))
        ones = write_checkpoint(Path(name) / "ones", config, seed=1)
        set_norms_to_one(ones)
        print("\nThe same, every norm weight one, as before training")
        show(ones, IN_QWEN3, range(16))

        print("\nRefused while loading, and what was said")
        for what, changed in (
            ("head_dim = hidden / heads", {"head_dim": 16}),
            ("a config without QK-norm", {"qk_norm": False}),
            ("an lm_head of its own", {"tie_word_embeddings": False}),
        ):
            print(f"  {what}")
            print(textwrap.indent(textwrap.fill(refusal(drawn, changed), 90), "    "))


def show(
    folder: Path,
    mistakes: Sequence[Mistake],
    ids: Sequence[int],
    tokenizer: Tokenizer | None = None,
    num_tokens: int = 0,
) -> None:
    """Print one line per mistake: differences to transformers, and the text where there is one."""
    theirs = HFOracle(folder).hidden_states(ids)
    last = len(theirs.hidden) - 1
    head = ["mistake", "token 0", "layer 1", f"layer {last}", "logits"]
    rows = [head if tokenizer is None else [*head, "greedy text"]]
    for mistake in mistakes:
        model = build(folder, mistake)
        ours = states(model, mistake.attend, ids)
        shown = [
            share(ours.hidden[last][:1], theirs.hidden[last][:1]),
            share(ours.hidden[1], theirs.hidden[1]),
            share(ours.hidden[last], theirs.hidden[last]),
            share(ours.logits, theirs.logits),
        ]
        row = [mistake.name, *(f"{value:.1g}" for value in shown)]
        if tokenizer is not None:
            row.append(repr(tokenizer.decode(greedy(model, mistake.attend, ids, num_tokens))))
        rows.append(row)
    print("\n".join(f"  {line}" for line in table(rows, " rrrr")))


def build(folder: Path, mistake: Mistake) -> Transformer:
    """The checkpoint's model in float32, with one thing wrong."""
    config = dataclasses.replace(ModelConfig.from_pretrained(folder), **mistake.config)
    kind = torch.float32
    linear = dense_linear_factory(kind, "cpu")
    model = Transformer(config, ops=mistake.ops, linear=linear, dtype=kind, device="cpu")
    load_weights(model, folder)
    return model


def states(model: Transformer, attend: Attend, ids: Sequence[int]) -> OracleStates:
    """The residual stream after every layer, and the logits."""
    hidden: list[Tensor] = []
    tokens, positions = torch.tensor(list(ids)), torch.arange(len(ids))
    final = model(tokens, positions, attend, lambda _, stream: hidden.append(stream))
    return OracleStates(tuple(hidden), model.logits(final))


def greedy(model: Transformer, attend: Attend, ids: Sequence[int], num_tokens: int) -> list[int]:
    """The likeliest ids after a prompt, everything computed again for each."""
    known = list(ids)
    for _ in range(num_tokens):
        known.append(int(states(model, attend, known).logits[-1].argmax()))
    return known[len(ids) :]


def share(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def set_norms_to_one(folder: Path) -> None:
    """Overwrite the norm weights of a one-file checkpoint."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.endswith("norm.weight"):
            tensor.fill_(1.0)
    save_file(tensors, path, metadata={"format": "pt"})


def refusal(folder: Path, config: dict[str, Any]) -> str:
    """What the loader says to a config that does not fit the files."""
    try:
        build(folder, Mistake("", config))
    except CheckpointError as error:
        return str(error).replace(str(folder), "the folder")
    return "nothing"


if __name__ == "__main__":
    main()
