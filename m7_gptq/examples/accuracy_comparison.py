"""What four and eight bits cost: output errors of each linear layer, and perplexity of two texts.

    python m7_gptq/examples/accuracy_comparison.py
    python m7_gptq/examples/accuracy_comparison.py --layers 30 --samples 32 --seq-len 512

Only the first decoder layers are quantised by default, so that it takes a minute on a CPU; the
others stay as they are. Each model is written as a checkpoint and loaded again. The weights of
smollm2 are Q4_1 already, and its "floats" are these, dequantised. The measured comparison of whole
models is ``python -m m7_gptq.benchmarks --only accuracy``.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from common.cli_errors import OneLineParser, run
from common.hub import resolve_model
from common.model.transformer import Transformer
from m0_init.loader import LoadedModel, load
from m7_gptq.calibrate import QuantizedLinear, quantise_model
from m7_gptq.checkpoint_writer import write_checkpoint
from m7_gptq.linear import gptq_linear
from m7_gptq.perplexity import perplexity
from m7_gptq.quantizer import QuantSpec
from m7_gptq.texts import CALIBRATION, EVALUATION, token_batches

LINEARS_OF_A_LAYER = 7
"""q, k, v, o, gate, up, down."""

CASES = (
    ("rtn", QuantSpec(group_size=64)),
    ("gptq", QuantSpec(group_size=64)),
    ("gptq", QuantSpec(group_size=64, desc_act=True)),
    ("gptq", QuantSpec(group_size=32)),
    ("gptq", QuantSpec(bits=8, group_size=64)),
)


def main(argv: list[str]) -> int:
    """Quantise in several ways and score each. Returns the exit code."""
    parser = OneLineParser(description="Accuracy of 4-bit weights.")
    parser.add_argument("--layers", type=int, help="decoder layers to quantise (default 4)")
    parser.add_argument("--samples", type=int, help="calibration samples (default 8)")
    parser.add_argument("--seq-len", type=int, help="tokens of a sample (default 128)")
    parser.add_argument("--tokens", type=int, help="tokens scored of each text (default 512)")
    parser.add_argument("--smoke", action="store_true", help="one layer, two ways, few tokens")
    args = parser.parse_args(argv)
    smoke = bool(args.smoke)
    layers = args.layers or (1 if smoke else 4)
    count, length = args.samples or (2 if smoke else 8), args.seq_len or (64 if smoke else 128)
    tokens = args.tokens or (64 if smoke else 512)
    loaded = load(resolve_model("smollm2"), dtype="float32", device="cpu")
    assert loaded.tokenizer is not None
    calibration, unseen = (
        token_batches(loaded.tokenizer, text.read(), num_samples=count, seq_len=length)
        for text in (CALIBRATION, EVALUATION["bible"])
    )
    print(f"smollm2 (dequantised Q4_1), {layers} of {loaded.config.num_layers} decoder layers")
    print(f"calibration: {count} samples of {length} tokens; {tokens} tokens scored of each text")
    print("                           output error, median layer      perplexity")
    print(
        "                           calibration   other text   "
        + "  ".join(map(_column, EVALUATION))
    )
    print(f"{'floats':27}{'':>11}{'':>13}   {scores(loaded, loaded.model, tokens)}")
    for method, spec in CASES[:2] if smoke else CASES:
        linears = list(
            islice(
                quantise_model(
                    loaded.model, calibration, spec, method=method, held_out=unseen, progress=False
                ),
                LINEARS_OF_A_LAYER * layers,
            )
        )
        on_calibration, on_other = errors(linears)
        found = scores(loaded, written_and_loaded(loaded, linears, spec), tokens)
        print(
            f"{name(method, spec):27}{on_calibration:11.3%}{on_other:13.3%}   {found}", flush=True
        )
    return 0


def errors(linears: Sequence[QuantizedLinear]) -> tuple[float, float]:
    """Median relative output error on the calibration samples, and on the held-out ones."""
    held_out = [each.held_out.chosen for each in linears if each.held_out is not None]
    seen = [each.calibration.chosen for each in linears]
    return statistics.median(seen), statistics.median(held_out)


def written_and_loaded(
    loaded: LoadedModel, linears: Sequence[QuantizedLinear], spec: QuantSpec
) -> Transformer:
    """The model that a user would run: layers in the list are packed, the others dense."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "quantised"
        write_checkpoint(folder, loaded.folder, loaded.config, linears, spec)
        return load(folder, dtype="float32", device="cpu", linear=gptq_linear(folder)).model


def scores(loaded: LoadedModel, model: Transformer, tokens: int) -> str:
    """Perplexity of the beginning of each evaluation text, side by side."""
    assert loaded.tokenizer is not None
    texts = (
        loaded.tokenizer.encode(text.read(), add_special_tokens=False)[:tokens]
        for text in EVALUATION.values()
    )
    window = min(256, tokens)
    return "  ".join(
        f"{perplexity(model, ids, window=window, stride=window // 2).value:8.3f}" for ids in texts
    )


def name(method: str, spec: QuantSpec) -> str:
    """Such as ``gptq 4 bits g64``."""
    text = f"{method} {spec.bits} bits g{spec.group_size}"
    return text + " act-order" * spec.desc_act


def _column(text: str) -> str:
    return f"{text:>8}"


if __name__ == "__main__":
    run(main)
