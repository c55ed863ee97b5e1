"""What 4 bits cost: perplexity of the floats, of round-to-nearest and of GPTQ, on two texts.

Every quantised model is written as a checkpoint and loaded again, so that what is scored is what a
user would run. The perplexities of one text compare with each other and with nothing else. The
floats and one quantised model are scored again with an output matrix of 8 bits (``head_bits=8``).

The whole benchmark takes many minutes. Each finished case is printed and kept in ``build``, and the
same command on the same commit goes on after the last one.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from common.embedded_model import EMBEDDED_MODEL
from common.hub import DEFAULT_MODEL
from common.model.transformer import Transformer
from common.results import Result, Row, make_result, row
from common.tokenizer import Tokenizer
from m0_init.loader import LoadedModel, load
from m7_gptq.benchmarks.kept import Kept
from m7_gptq.calibrate import QuantizedLinear, quantise_model
from m7_gptq.checkpoint_writer import write_checkpoint
from m7_gptq.head import round_head
from m7_gptq.linear import gptq_linear
from m7_gptq.perplexity import perplexity
from m7_gptq.quantizer import QuantSpec
from m7_gptq.texts import CALIBRATIONS, EVALUATION, mixed_batches

Q4_1_NOTE = (
    f"{EMBEDDED_MODEL} comes as Q4_1: its 'floats' are 4-bit weights in groups of 32, dequantised."
)


@dataclass(frozen=True)
class Sizes:
    """How much is computed.

    Attributes:
        samples: Calibration samples.
        seq_len: Tokens of a sample.
        held_out: Held-out samples, from the evaluation texts.
        tokens: Tokens scored of each evaluation text.
        window: Tokens that the model sees at once.
        stride: Tokens by which the window moves.
    """

    samples: int
    seq_len: int
    held_out: int
    tokens: int
    window: int
    stride: int


SMOKE = Sizes(samples=2, seq_len=16, held_out=1, tokens=32, window=16, stride=8)
SHORT = Sizes(samples=16, seq_len=256, held_out=4, tokens=1024, window=512, stride=256)
FULL = Sizes(samples=32, seq_len=512, held_out=4, tokens=4096, window=1024, stride=512)


@dataclass(frozen=True)
class Case:
    """One way to quantise.

    Attributes:
        method: ``rtn`` or ``gptq``.
        spec: Bits, groups, order.
        calibration: Names of the calibration texts.
    """

    method: str
    spec: QuantSpec
    calibration: tuple[str, ...] = tuple(CALIBRATIONS)

    def __str__(self) -> str:
        """Such as ``gptq g64 sym act-order``."""
        parts = [self.method, f"g{self.spec.group_size}", "sym" if self.spec.sym else "asym"]
        parts += ["act-order"] * self.spec.desc_act
        return " ".join(parts) + f" ({'+'.join(self.calibration)})"

    @property
    def labels(self) -> dict[str, str | int | bool]:
        """What sets its rows apart."""
        return {
            "method": self.method,
            "group_size": self.spec.group_size,
            "sym": self.spec.sym,
            "act_order": self.spec.desc_act,
            "calibration": "+".join(self.calibration),
        }


def _progress(case: Case, rises: dict[str, float]) -> str:
    """A line as soon as a case is done: all of them take a while."""
    return f"{case}: " + ", ".join(f"{text} {rise:+.2%}" for text, rise in rises.items())


def cases(smoke: bool, full: bool) -> list[Case]:
    """Rounding, GPTQ and GPTQ with act-order, in groups of 64.

    ``full`` adds groups of 32 and asymmetric grids, and GPTQ calibrated on one kind of text alone.
    """
    if smoke:
        return [Case("rtn", QuantSpec(group_size=16)), Case("gptq", QuantSpec(group_size=16))]
    found = [
        Case(method, QuantSpec(group_size=group, sym=sym, desc_act=order))
        for group in ((64, 32) if full else (64,))
        for sym in ((True, False) if full else (True,))
        for method, order in (("rtn", False), ("gptq", False), ("gptq", True))
    ]
    one_kind = Case("gptq", QuantSpec(group_size=64), calibration=("python",))
    return [*found, one_kind] if full else found


def run(args: Namespace, notes: list[str]) -> tuple[Result, str]:
    """Score the floats and every case.

    Args:
        args: The benchmark's command line.
        notes: Sentences for the result file.

    Returns:
        The result and the summary line.
    """
    sizes = SMOKE if args.smoke else FULL if args.full else SHORT
    loaded = load(args.model, dtype=args.dtype, device=args.device)
    assert loaded.tokenizer is not None, "perplexity needs a tokenizer"
    config = {"model": str(args.model), "bits": 4, "damp": QuantSpec().damp, **asdict(sizes)}
    kept = Kept(args.full, {**config, "dtype": args.dtype, "device": args.device})
    floats = _perplexities(loaded.model, loaded.tokenizer, sizes)
    rows = [
        row("perplexity", "ppl", value, text=text, method="float") for text, value in floats.items()
    ]
    eight = load(args.model, dtype=args.dtype, device=args.device)
    rows += _head_rows(eight, {"method": "float+head8"}, floats, sizes)
    best: tuple[float, Case] | None = None
    found = cases(args.smoke, args.full)
    for number, case in enumerate(found, 1):
        done = kept.find(case.labels)
        made, values = done or _quantised(loaded, case, sizes, floats, head=case == found[1])
        kept.keep(case.labels, (made, values))
        rows += made
        rises = {text: values[text] / floats[text] - 1 for text in values}
        for text, value in values.items():
            rows += [
                row("perplexity", "ppl", value, text=text, **case.labels),
                row("perplexity_rise", "share", rises[text], text=text, **case.labels),
            ]
        print(f"{number}/{len(found)} {_progress(case, rises)}{' (kept)' * bool(done)}", flush=True)
        worst = max(rises.values())
        if case.method == "gptq" and (best is None or worst < best[0]):
            best = worst, case
    assert best is not None
    if args.model == DEFAULT_MODEL:
        notes = [*notes, Q4_1_NOTE]
    result = make_result(
        "m7_gptq", "accuracy", rows, device=args.device, config=config, notes=notes
    )
    return result, f"m7_gptq: best 4-bit setting: perplexity {best[0]:+.2%} at worst ({best[1]})"


def _perplexities(model: Transformer, tokenizer: Tokenizer, sizes: Sizes) -> dict[str, float]:
    """Perplexity of the beginning of each evaluation text."""
    found = {}
    for name, text in EVALUATION.items():
        ids = tokenizer.encode(text.read(), add_special_tokens=False)[: sizes.tokens]
        found[name] = perplexity(model, ids, window=sizes.window, stride=sizes.stride).value
    return found


def _head_rows(
    loaded: LoadedModel,
    labels: dict[str, str | int | bool],
    floats: dict[str, float],
    sizes: Sizes,
) -> list[Row]:
    """Round a model's output matrix to 8 bits and score it; the model is changed."""
    assert loaded.tokenizer is not None
    before = loaded.model.weight_bytes()
    round_head(loaded.model)
    rows = []
    for text, value in _perplexities(loaded.model, loaded.tokenizer, sizes).items():
        rows += [
            row("perplexity", "ppl", value, text=text, **labels),
            row("perplexity_rise", "share", value / floats[text] - 1, text=text, **labels),
        ]
    saved = float(before - loaded.model.weight_bytes())
    return [*rows, row("head_bytes_saved", "B", saved, **labels)]


def _quantised(
    loaded: LoadedModel, case: Case, sizes: Sizes, floats: dict[str, float], *, head: bool
) -> tuple[list[Row], dict[str, float]]:
    """Quantise, write, load and score; error rows and perplexities.

    Args:
        loaded: The dense model.
        case: How to quantise.
        sizes: How much to compute.
        floats: Perplexities of the dense model.
        head: Score it with an output matrix of 8 bits too.
    """
    assert loaded.tokenizer is not None
    texts = [CALIBRATIONS[name].read() for name in case.calibration]
    samples = mixed_batches(
        loaded.tokenizer, texts, num_samples=sizes.samples, seq_len=sizes.seq_len
    )
    unseen = mixed_batches(
        loaded.tokenizer, [text.read() for text in EVALUATION.values()],
        num_samples=sizes.held_out, seq_len=sizes.seq_len,
    )  # fmt: skip
    if case.method == "rtn":  # no activation changes its integers: one token will do
        samples, unseen = [samples[0][:1]], []
    errors: list[QuantizedLinear] = []

    def noted() -> Iterator[QuantizedLinear]:
        for linear in quantise_model(
            loaded.model, samples, case.spec, method=case.method, held_out=unseen
        ):
            errors.append(linear)
            yield linear

    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "quantised"
        size = write_checkpoint(out, loaded.folder, loaded.config, noted(), case.spec)
        made = load(
            out, dtype=str(loaded.dtype).removeprefix("torch."), device=str(loaded.device),
            linear=gptq_linear(out),
        )  # fmt: skip
        values = _perplexities(made.model, loaded.tokenizer, sizes)
    rows = [row("checkpoint_bytes", "B", float(size), **case.labels)]
    if head:
        labels = {**case.labels, "method": f"{case.method}+head8"}
        rows += _head_rows(made, labels, floats, sizes)
    if case.method == "gptq":
        rows += _error_rows(errors, case)
    return rows, values


def _error_rows(errors: list[QuantizedLinear], case: Case) -> list[Row]:
    """In how many linear layers GPTQ's output error is below rounding's, and by how much."""
    rows = []
    for samples in ("calibration", "held_out"):
        pairs = [each.calibration if samples == "calibration" else each.held_out for each in errors]
        known = [pair for pair in pairs if pair is not None]
        below = sum(pair.chosen < pair.rtn for pair in known) / len(known)
        ratios = [pair.chosen / pair.rtn for pair in known]
        rows += [
            row("layers_below_rtn", "share", below, samples=samples, **case.labels),
            row("error_over_rtn", "ratio", ratios, samples=samples, **case.labels),
            row("output_error", "share", [p.chosen for p in known], samples=samples, **case.labels),
        ]
    return rows
