"""``python -m m7_gptq quantize MODEL OUT``: from a dense model folder to a GPTQ checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from common.cli_errors import OneLineParser
from common.devices import format_bytes
from common.errors import ConfigError
from common.hub import resolve_model
from common.model_config import ModelConfig
from m7_gptq.packing import FORMATS, SUPPORTED_BITS
from m7_gptq.texts import CALIBRATIONS, mixed_batches


def main(argv: list[str]) -> int:
    """Quantise a model.

    Args:
        argv: Arguments after ``quantize``.

    Returns:
        The exit code.

    Raises:
        FoloError: Bad input; :func:`common.cli_errors.run` prints it in one line.
    """
    args = make_parser().parse_args(argv)
    from m0_init.loader import load  # torch is loaded once the arguments are known to be right
    from m7_gptq.calibrate import Errors, QuantizedLinear, quantise_model
    from m7_gptq.checkpoint_writer import check_free, check_quantisable, write_checkpoint
    from m7_gptq.quantizer import QuantSpec

    spec = QuantSpec(
        bits=args.bits,
        group_size=args.group_size,
        sym=not args.asym,
        desc_act=args.desc_act,
        damp=args.damp,
    )
    out = Path(args.out)
    check_free(out)
    folder = resolve_model(args.model)
    check_quantisable(ModelConfig.from_pretrained(folder), spec)
    texts = _calibration_texts(args.text)
    loaded = load(folder, device=args.device)
    if loaded.tokenizer is None:
        raise ConfigError(f"{folder} has no tokenizer, which calibration needs")
    samples = mixed_batches(loaded.tokenizer, texts, num_samples=args.samples, seq_len=args.seq_len)
    errors: list[Errors] = []

    def noted() -> Iterator[QuantizedLinear]:
        """The layers as they come; their errors stay, their integers need not."""
        for linear in quantise_model(loaded.model, samples, spec, method=args.method):
            errors.append(linear.calibration)
            yield linear

    size = write_checkpoint(out, folder, loaded.config, noted(), spec, form=args.format)
    better = sum(each.chosen < each.rtn for each in errors)
    mean = sum(each.chosen for each in errors) / len(errors)
    nearest = sum(each.rtn for each in errors) / len(errors)
    sys.stdout.write(
        f"{out}: {format_bytes(size)} of tensors, {len(errors)} linear layers of {spec.bits} bits\n"
        f"mean output error on the calibration text: {mean:.2%} ({args.method}), "
        f"{nearest:.2%} (round-to-nearest); smaller in {better} of {len(errors)} layers\n"
    )
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = OneLineParser(
        prog="python -m m7_gptq quantize", description="Write a GPTQ checkpoint of a dense model."
    )
    parser.add_argument("model", metavar="MODEL", help="local folder, hub id, or smollm2")
    parser.add_argument("out", metavar="OUT", help="folder to write; must not exist")
    parser.add_argument("--bits", type=int, choices=SUPPORTED_BITS, default=4)
    parser.add_argument(
        "--group-size", type=int, default=128, help="input channels per scale; -1: all of them"
    )
    parser.add_argument("--desc-act", action="store_true", help="act-order")
    parser.add_argument("--asym", action="store_true", help="a zero point for each group")
    parser.add_argument("--damp", type=float, default=0.05, help="share of H's mean diagonal")
    parser.add_argument("--samples", type=int, default=32, help="calibration samples")
    parser.add_argument("--seq-len", type=int, default=512, help="tokens of a sample")
    parser.add_argument(
        "--text", metavar="FILE", help="calibration text (default: the vendored ones)"
    )
    parser.add_argument("--method", choices=("gptq", "rtn"), default="gptq")
    parser.add_argument("--format", choices=FORMATS, help="default: gptq, with --asym gptq_v2")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    return parser


def _calibration_texts(file: str | None) -> list[str]:
    """The user's file, or the vendored texts.

    Raises:
        ConfigError: The file is not UTF-8.
    """
    if file is None:
        return [text.read() for text in CALIBRATIONS.values()]
    try:
        return [Path(file).read_text(encoding="utf-8")]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text: {error.reason}") from None
