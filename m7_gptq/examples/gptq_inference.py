"""Quantise a model, run it, and see what one wrong key in its config does.

    python m7_gptq/examples/gptq_inference.py
    python m7_gptq/examples/gptq_inference.py --checkpoint FOLDER

The same prompts go to the dense model, to its 4-bit checkpoint, and to that checkpoint read as the
other version of the format: zero points are then off by one, nothing crashes, and the text is
lost. Without ``--checkpoint`` the first decoder layers of smollm2 are quantised on the spot. Its
weights are Q4_1 already, and "dense" means these, dequantised.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from itertools import islice
from pathlib import Path

from common.cli_errors import OneLineParser, run
from common.devices import format_bytes
from common.hub import resolve_model
from m0_init.loader import load
from m7_gptq import LLMEngine, SamplingParams
from m7_gptq.calibrate import quantise_model
from m7_gptq.checkpoint_writer import write_checkpoint
from m7_gptq.quantization_config import FILE, read_config
from m7_gptq.quantizer import QuantSpec
from m7_gptq.texts import CALIBRATION, token_batches

PROMPTS = ("The capital of France is", "Water boils at", "def add(a, b):\n    return")
LINEARS_OF_A_LAYER = 7
"""q, k, v, o, gate, up, down."""


def main(argv: list[str]) -> int:
    """Run the three models. Returns the exit code."""
    parser = OneLineParser(description="Inference with GPTQ weights.")
    parser.add_argument("--checkpoint", metavar="FOLDER", help="a GPTQ checkpoint to run instead")
    parser.add_argument("--layers", type=int, help="decoder layers to quantise (default 6)")
    parser.add_argument("--group-size", type=int, default=64, help="input channels per scale")
    parser.add_argument("--max-tokens", type=int, help="tokens of each answer (default 12)")
    parser.add_argument("--smoke", action="store_true", help="fewer layers, prompts and tokens")
    args = parser.parse_args(argv)
    smoke = bool(args.smoke)
    prompts = PROMPTS[:1] if smoke else PROMPTS
    max_tokens = args.max_tokens or (6 if smoke else 12)
    with tempfile.TemporaryDirectory() as scratch:
        if args.checkpoint is None:
            folder = Path(scratch) / "smollm2-4bit"
            layers = args.layers or (2 if smoke else 6)
            quantise(folder, QuantSpec(group_size=args.group_size), layers)
            print(f"quantised {layers} decoder layers of smollm2, groups of {args.group_size}")
            answer("smollm2", "dense", prompts, max_tokens)
        else:
            folder = resolve_model(args.checkpoint)
        answer(str(folder), "4 bits", prompts, max_tokens)
        wrong = Path(scratch) / "misread"
        stored, claimed = with_other_format(folder, wrong)
        title = f"4 bits, stored as {stored}, read as {claimed}"
        answer(str(wrong), title, prompts, max_tokens)
    return 0


def quantise(folder: Path, spec: QuantSpec, layers: int) -> None:
    """Write a checkpoint whose first decoder layers are quantised and the others dense."""
    source = resolve_model("smollm2")
    loaded = load(source, dtype="float32", device="cpu")
    assert loaded.tokenizer is not None
    samples = token_batches(loaded.tokenizer, CALIBRATION.read(), num_samples=4, seq_len=128)
    made = quantise_model(loaded.model, samples, spec, progress=False)
    linears = islice(made, LINEARS_OF_A_LAYER * layers)
    write_checkpoint(folder, source, loaded.config, linears, spec)


def answer(model: str, title: str, prompts: tuple[str, ...], max_tokens: int) -> None:
    """Greedy answers, and the bytes of the weights as they lie in memory."""
    engine = LLMEngine(model, device="cpu", dtype="float32", num_blocks=64, max_model_len=512)
    print(f"\n{title}: weights {format_bytes(engine.stats().weight_bytes)}")
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    for output in engine.generate(list(prompts), params):
        print(f"   {output.prompt!r} -> {output.outputs[0].text!r}")


def with_other_format(folder: Path, out: Path) -> tuple[str, str]:
    """Copy a checkpoint and let its config name the other format. Returns both names."""
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    stored = read_config(folder, config.get("quantization_config")).form
    claimed = "gptq_v2" if stored == "gptq" else "gptq"
    changed = {"format": claimed, "checkpoint_format": claimed}
    if "quantization_config" in config:
        config["quantization_config"] |= changed
        (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if (out / FILE).is_file():
        own = json.loads((out / FILE).read_text(encoding="utf-8"))
        (out / FILE).write_text(json.dumps(own | changed), encoding="utf-8")
    return stored, claimed


if __name__ == "__main__":
    run(main)
