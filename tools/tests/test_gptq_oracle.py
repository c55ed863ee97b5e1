"""The half of the cross-check that runs here, with an answering side that is made up."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.results import from_json
from m7_gptq.quantizer import QuantSpec
from m7_gptq.tests.samples import (
    dequantise,
    loaded,
    logits,
    quantised_names,
    tensors_of,
)
from tools.gptq_oracle import cases
from tools.gptq_oracle.__main__ import THEIRS, main
from tools.gptq_oracle.cases import Case
from tools.gptq_oracle.exchange import REFUSAL

OURS = [
    Case("qwen3", QuantSpec(bits=4, group_size=32, desc_act=True), "gptq"),
    Case("qwen2", QuantSpec(bits=8, group_size=-1, sym=False), "gptq_v2"),
]
THEIR = [Case("llama", QuantSpec(bits=4, group_size=64), "gptq")]
Spoil = Callable[[dict[str, Any], dict[str, torch.Tensor]], str]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three checkpoints in place of fifty."""
    monkeypatch.setattr(cases, "ours", lambda: OURS)
    monkeypatch.setattr(cases, "theirs", lambda: THEIR)


def faithful(job: dict[str, Any], answer: dict[str, torch.Tensor]) -> str:
    """What GPTQModel does: it reads all but foreign asymmetric v1 files."""
    config = job["config"]
    foreign = job["action"] == "read" and not config["sym"] and config["format"] == "gptq"
    return f"Format: {REFUSAL} version >= 0.9.0" if foreign else ""


def answering(spoil: Spoil = faithful) -> Callable[[Path], None]:
    """The other side: an independent unpacking, and logits of our own reader."""

    def answer(path: Path) -> None:
        for job in json.loads(path.read_text()):
            folder = Path(job["folder"])
            if job["action"] == "quantise":  # GPTQModel's own file: here one of ours of its kind
                shutil.copytree(next(iter(sorted((path.parent / "ours").iterdir()))), folder)
            tensors = tensors_of(folder)
            config = json.loads((folder / "quantize_config.json").read_text())
            offset = int(config["format"] == "gptq")
            model = loaded(folder)
            found = {"logits": logits(model, load_file(job["ids"])["token_ids"])}
            if job["action"] != "transformers":
                for name in quantised_names(tensors):
                    weight = dequantise(tensors, name, offset, config["bits"])
                    found[f"weight:{name}"] = torch.from_numpy(weight).contiguous()
            reason = spoil(job, found)
            Path(job["answer"]).with_suffix(".json").write_text(json.dumps({"reason": reason}))
            if not reason:
                save_file(found, job["answer"])

    return answer


def check(tmp_path: Path, spoil: Spoil = faithful) -> int:
    return main(["--python", "unused", "--out", str(tmp_path)], answering(spoil))


def test_agreement_becomes_a_result(tmp_path: Path) -> None:
    assert check(tmp_path) == 0
    (file,) = tmp_path.rglob("m7_gptq-oracle.json")
    result = from_json(file.read_text())
    borders = {(row["writer"], row["reader"]) for row in result.rows}
    assert borders == {("ours", "gptqmodel"), ("ours", "transformers"), ("gptqmodel", "ours")}
    assert sum(row["median"] for row in result.select(metric="checkpoints")) == 5
    equal = result.select(metric="weights_equal")
    assert [row["median"] for row in equal] == [1.0] * 3
    assert all(row["reader"] != "transformers" for row in equal)  # it gives logits alone


def test_a_weight_that_differs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def spoil(job: dict[str, Any], answer: dict[str, torch.Tensor]) -> str:
        if job["action"] == "read":
            answer["weight:model.layers.1.mlp.up_proj"][3, 5] += 1e-6
        return faithful(job, answer)

    assert check(tmp_path, spoil) == 1
    assert "read qwen3-4bit-g32-sym-order-gptq: model.layers.1.mlp.up_proj" in (
        capsys.readouterr().err
    )
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(("by", "code"), [(0.9e-3, 0), (2e-3, 1)])
def test_logits_may_differ_by_a_thousandth(tmp_path: Path, by: float, code: int) -> None:
    def spoil(job: dict[str, Any], answer: dict[str, torch.Tensor]) -> str:
        answer["logits"][7, 2] += by
        return faithful(job, answer)

    assert check(tmp_path, spoil) == code


@pytest.mark.parametrize(
    ("action", "reason", "message"),
    [
        ("transformers", "ImportError: no optimum", "ImportError: no optimum"),
        ("read", "", "expected to be refused, got logits"),
    ],
)
def test_failures_and_missing_refusals_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str, reason: str, message: str
) -> None:
    def spoil(job: dict[str, Any], answer: dict[str, torch.Tensor]) -> str:
        return reason if job["action"] == action else faithful(job, answer)

    assert check(tmp_path, spoil) == 1
    assert message in capsys.readouterr().err


def test_a_missing_answer_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--python", "unused", "--out", str(tmp_path)], lambda _: None) == 1
    assert "no answer" in capsys.readouterr().err


def test_a_process_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="exit code 1"):
        main(["--python", "/bin/false", "--out", str(tmp_path)])


class TestCases:
    @pytest.fixture(autouse=True)
    def few(self) -> None:
        """All of them."""

    def test_every_combination_that_we_write_is_there_once(self) -> None:
        found = cases.ours()
        assert len({case.name for case in found}) == len(found) == 36
        assert {case.family for case in found} == set(cases.FAMILIES)
        for family in cases.FAMILIES:
            own = [case for case in found if case.family == family]
            assert {case.spec.bits for case in own} == {4, 8}
            assert {(case.spec.sym, case.form) for case in own} == {
                (True, "gptq"), (True, "gptq_v2"), (False, "gptq_v2"),
            }  # fmt: skip

    def test_theirs_cover_both_of_everything(self) -> None:
        found = cases.theirs()
        assert len({case.name for case in found}) == len(found) == 12
        assert {case.spec.bits for case in found} == {4, 8}
        assert {case.spec.group_size for case in found} == set(cases.GROUPS)
        assert {(case.spec.sym, case.form, case.spec.desc_act) for case in found} >= {
            (False, "gptq", True), (False, "gptq", False), (True, "gptq", True),
            (False, "gptq_v2", False), (True, "gptq_v2", False),
        }  # fmt: skip

    def test_asymmetric_grids_meet_a_zero_point_of_zero(self, tmp_path: Path) -> None:
        tensors = tensors_of(cases.write_dense(tmp_path, "llama"))
        weight = tensors["model.layers.0.mlp.up_proj.weight"]
        assert weight.dtype == torch.float16
        assert bool((weight[::5] >= 0).all())
        assert bool((weight[1::5] < 0).any())


def test_the_other_side_imports_nothing_of_ours() -> None:
    tree = ast.parse(THEIRS.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
             for alias in node.names}  # fmt: skip
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {path.parent.name for path in THEIRS.parents[2].glob("*/__init__.py")}
    assert not {name.split(".")[0] for name in names} & ours
