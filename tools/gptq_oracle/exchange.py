"""What our side writes for the other one, and how the answers are compared.

Everything crosses the border as files of one folder::

    dense/FAMILY      float16 models
    ours/CASE         what we quantised and wrote          read by GPTQModel and by transformers
    theirs/CASE       what GPTQModel quantised and wrote   read by us
    answers/…         logits and dequantised weights of the other side, or a reason
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.model_config import ModelConfig
from common.results import Result, Row, make_result, row
from m0_init.loader import load
from m7_gptq.calibrate import quantise_model
from m7_gptq.checkpoint_writer import write_checkpoint
from m7_gptq.tests.samples import loaded, logits, our_weight
from tools.gptq_oracle.cases import Case, token_ids, write_dense

TOLERANCE = 1e-3
"""Largest difference of a logit; the logits themselves reach about 15."""

NOTES = (
    "Tiny random models of three families, float16 weights, everything computed in float32.",
    "A difference is the largest one of any logit of a checkpoint; the logits reach about 15.",
    "An asymmetric v1 file of ours is refused by GPTQModel, as expected: it loads its own only.",
)

REFUSAL = "only supported if produced by gptqmodel"


class Mismatch(Exception):  # noqa: N818 (a finding)
    """What did not agree, a line each."""


@dataclass
class Group:
    """Cases that make one row of the result.

    Attributes:
        differences: Largest difference of a logit, for each case.
        equal: For each compared layer, whether its dequantised weights are equal.
    """

    differences: list[float] = field(default_factory=list)
    equal: list[bool] = field(default_factory=list)


class Exchange:
    """One run of the cross-check in a folder."""

    def __init__(self, folder: Path) -> None:
        """Use ``folder``, which is empty."""
        self.folder = folder
        self.jobs: list[dict[str, Any]] = []
        self._cases: dict[str, Case] = {}

    def prepare(self, ours: Sequence[Case], refused: Case, theirs: Sequence[Case]) -> Path:
        """Write checkpoints of ours, calibration samples and the list of jobs.

        Args:
            ours: What we quantise and others read.
            refused: What we write and GPTQModel says no to.
            theirs: What GPTQModel quantises and we read.

        Returns:
            The file of jobs.
        """
        (self.folder / "answers").mkdir()
        save_file({"token_ids": token_ids(1, 48, seed=3)[0]}, self.folder / "ids.safetensors")
        save_file({"token_ids": token_ids(6, 64, seed=4)}, self.folder / "samples.safetensors")
        for case in ours:
            self._write(case)
            self._job("read", case, f"ours/{case.name}")
            self._job("transformers", case, f"ours/{case.name}")
        self._write(refused)
        self._job("read", refused, f"ours/{refused.name}")
        for case in theirs:
            self._job("quantise", case, f"theirs/{case.name}")
        path = self.folder / "jobs.json"
        path.write_text(json.dumps(self.jobs), encoding="utf-8")
        return path

    def compare(self) -> Result:
        """Hold every answer against ours.

        Raises:
            Mismatch: With a line for each case that differs or failed.
        """
        groups: dict[tuple[str, str, int, bool], Group] = defaultdict(Group)
        wrong = []
        for job in self.jobs:
            case = self._cases[job["name"]]
            reason = _reason(job)
            if (not case.spec.sym and case.form == "gptq") and job["action"] == "read":
                if REFUSAL not in reason:
                    wrong.append(f"{job['name']}: expected to be refused, got {reason or 'logits'}")
                continue
            if reason:
                wrong.append(f"{job['name']}: {reason}")
                continue
            difference, unequal, compared = self._compare(job)
            if difference > TOLERANCE:
                wrong.append(f"{job['name']}: logits differ by {difference:.2e}")
            wrong += [f"{job['name']}: {layer} is dequantised differently" for layer in unequal]
            group = groups[*_border(job), case.spec.bits, case.spec.sym]
            group.differences.append(difference)
            group.equal += [False] * len(unequal) + [True] * (compared - len(unequal))
        if wrong:
            raise Mismatch("\n".join(wrong))
        return self._result(groups)

    @functools.cache  # noqa: B019 (one run, a handful of models)
    def _dense(self, family: Any) -> Path:
        return write_dense(self.folder / "dense" / family, family)

    def _write(self, case: Case) -> None:
        """Quantise with our code and write with our writer."""
        source = self._dense(case.family)
        model = load(source, dtype="float32", device="cpu").model
        samples = load_file(self.folder / "samples.safetensors")["token_ids"].tolist()
        linears = quantise_model(model, samples, case.spec, progress=False)
        config = ModelConfig.from_pretrained(source)
        out = self.folder / "ours" / case.name
        write_checkpoint(out, source, config, linears, case.spec, form=case.form)

    def _job(self, action: str, case: Case, target: str) -> None:
        name = f"{action} {case.name}"
        self._cases[name] = case
        self.jobs.append({
            "name": name, "action": action, "folder": str(self.folder / target),
            "bits": case.spec.bits, "config": case.config, "source": str(self._dense(case.family)),
            "ids": str(self.folder / "ids.safetensors"),
            "samples": str(self.folder / "samples.safetensors"),
            "answer": str(self.folder / "answers" / f"{name.replace(' ', '-')}.safetensors"),
        })  # fmt: skip

    def _compare(self, job: dict[str, Any]) -> tuple[float, list[str], int]:
        """Largest difference of a logit, layers that differ, and how many were compared."""
        model, answer = loaded(Path(job["folder"])), load_file(job["answer"])
        ids = load_file(job["ids"])["token_ids"]
        with torch.inference_mode():
            difference = float((logits(model, ids) - answer["logits"]).abs().max())
        stored = {
            name.removeprefix("weight:"): tensor
            for name, tensor in answer.items()
            if name.startswith("weight:")
        }
        unequal = [name for name, tensor in stored.items() if not _same(model, name, tensor)]
        return difference, unequal, len(stored)

    def _result(self, groups: dict[tuple[str, str, int, bool], Group]) -> Result:
        rows: list[Row] = []
        for (writer, reader, bits, sym), group in sorted(groups.items()):
            labels: dict[str, Any] = {"writer": writer, "reader": reader, "bits": bits, "sym": sym}
            rows.append(row("checkpoints", "checkpoints", len(group.differences), **labels))
            millionths = [each * 1e6 for each in group.differences]
            rows.append(row("logit_difference", "10⁻⁶", millionths, **labels))
            if group.equal:
                share = sum(group.equal) / len(group.equal)
                rows.append(row("weights_equal", "share", share, **labels))
        return make_result(
            "m7_gptq", "oracle", rows,
            config={"gptqmodel": "7.6.0", "optimum": "2.3.0", "tolerance": TOLERANCE},
            notes=NOTES,
        )  # fmt: skip


def _reason(job: dict[str, Any]) -> str:
    """Why the other side has no answer, or nothing."""
    path = Path(job["answer"]).with_suffix(".json")
    if not path.is_file():
        return "no answer"
    return str(json.loads(path.read_text(encoding="utf-8"))["reason"])


def _border(job: dict[str, Any]) -> tuple[str, str]:
    """Who wrote the checkpoint, and who read it."""
    if job["action"] == "quantise":
        return "gptqmodel", "ours"
    return "ours", {"read": "gptqmodel", "transformers": "transformers"}[job["action"]]


def _same(model: Any, name: str, tensor: Tensor) -> bool:
    return torch.equal(our_weight(model, name), tensor)
