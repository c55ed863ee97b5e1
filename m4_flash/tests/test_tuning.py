"""Tables of tile sizes, their defaults, and the script that writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common.environment import DeviceInfo, device_info
from common.errors import ConfigError
from common.results import to_json
from m4_flash.benchmarks import tune
from m4_flash.benchmarks.tune import Sweep, choose, describe, sweep
from m4_flash.benchmarks.tune_cases import (
    Case,
    cases_of,
    decode_cases,
    few_cases,
    prefill_cases,
)
from m4_flash.kernels import tuning
from m4_flash.kernels.tuning import (
    DecodeConfig,
    DecodeEntry,
    PrefillConfig,
    PrefillEntry,
    Table,
    decode_config,
    prefill_config,
    read_table,
    write_table,
)

CPU = torch.device("cpu")
MEASURED = PrefillConfig(block_m=64, block_n=32, num_warps=4, num_stages=2, use_tma=True)
FEW = DecodeConfig(block_n=32, num_warps=2, num_stages=4)
MANY = DecodeConfig(block_n=128, num_warps=8, num_stages=2)
TABLE = Table(
    "a GPU",
    "3.6.0",
    (PrefillEntry("prefill_contiguous", 64, "float32", MEASURED),),
    (
        DecodeEntry("decode_few", 64, "float32", FEW),
        DecodeEntry("decode_many", 64, "float32", MANY),
    ),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a table of this machine."""
    write_table(TABLE, tmp_path / f"{device_info('cpu').slug}.json")
    return tmp_path


class TestConfigs:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ((8, 16, 4, 1), "block_m must be a power of two of at least 16, got 8"),
            ((16, 48, 4, 1), "block_n must be a power of two of at least 16, got 48"),
            ((16, 16, 3, 1), "num_warps must be a power of two of at least 1, got 3"),
            ((16, 16, 4, 0), "num_stages must be at least 1, got 0"),
        ],
    )
    def test_values_outside_their_range(self, values: tuple[int, ...], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            PrefillConfig(*values)  # type: ignore[arg-type]
        if values[0] == 16:
            with pytest.raises(ConfigError, match=message):
                DecodeConfig(*values[1:])

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("head_dim", [16, 64, 128, 256])
    @pytest.mark.parametrize("kind", tune.PREFILL_KINDS)
    def test_defaults_fit_the_smallest_device(
        self, kind: Any, head_dim: int, dtype: torch.dtype, device: str
    ) -> None:
        """At most 163 KiB of shared memory (an A100's): q, and K and V of each stage."""
        where = torch.device(device)
        prefill = tuning._default_prefill(kind, where, head_dim, dtype)
        decode = tuning._default_decode(where, head_dim, dtype)
        row = head_dim * dtype.itemsize
        rows = prefill.block_m + 2 * prefill.num_stages * prefill.block_n
        assert device == "cpu" or rows * row <= 163 * 1024
        rows = 16 + 2 * decode.num_stages * decode.block_n
        assert device == "cpu" or rows * row <= 163 * 1024
        assert not prefill.use_tma


class TestTable:
    def test_is_read_as_written(self, folder: Path) -> None:
        (path,) = folder.iterdir()
        assert read_table(path) == TABLE

    def test_over_another_one(self) -> None:
        """What is measured again is replaced, and the rest stays."""
        again = Table("d", "t", decode=(DecodeEntry("decode_few", 64, "float32", MANY),))
        both = again.over(TABLE)
        assert both.prefill == TABLE.prefill
        chosen = {entry.kind: entry.config for entry in both.decode}
        assert chosen == {"decode_few": MANY, "decode_many": MANY}
        assert (both.device, len(both.decode)) == ("d", len(TABLE.decode))

    def test_is_used_where_it_has_an_entry(self, folder: Path) -> None:
        dtype = torch.float32
        found = prefill_config("prefill_contiguous", CPU, 64, dtype, folder)
        assert found == MEASURED
        assert decode_config(31, CPU, 64, dtype, folder) == FEW
        assert decode_config(32, CPU, 64, dtype, folder) == MANY

    def test_defaults_fill_the_rest(self, folder: Path, tmp_path: Path) -> None:
        default = prefill_config("prefill_paged", CPU, 64, torch.float32, folder)
        assert default == PrefillConfig(block_m=64, block_n=64, num_warps=4, num_stages=1)
        decode = decode_config(4, CPU, 128, torch.float32, folder)
        assert decode == DecodeConfig(block_n=64, num_warps=4, num_stages=1)
        nothing = tmp_path / "nothing"
        assert decode_config(4, CPU, 64, torch.float32, nothing) == decode

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('"block_m"', '"block_k"', r"table.prefill\[0\].config has an unknown key 'block_k'"),
            ('"device"', '"gpu"', "table has an unknown key 'gpu'"),
            ("decode_few", "decode_none", r"table.decode\[0\].kind must be one of"),
            ('"num_stages": 4', '"num_stages": 0', "num_stages must be at least 1, got 0"),
            ("decode_few", "decode_many", "two entries for"),
            ("{", "", "not JSON"),
            ("folovllm.tuned", "folovllm.other", "schema must be 'folovllm.tuned'"),
        ],
    )
    def test_a_wrong_file_is_named(self, folder: Path, old: str, new: str, message: str) -> None:
        (path,) = folder.iterdir()
        path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
        with pytest.raises(ConfigError, match=message) as caught:
            read_table(path)
        assert str(caught.value).startswith(path.name)

    def test_committed_tables_are_valid(self) -> None:
        """There may be none: tables are added by whoever measures a device."""
        tables = {path.stem: read_table(path) for path in tuning.TABLES.glob("*.json")}
        for slug, table in tables.items():
            assert slug == DeviceInfo("cuda", table.device, 1, 1).slug


def fake_case(written: dict[Any, float]) -> Case[DecodeConfig]:
    """Writes a number per configuration; those without one do not compile."""
    out = torch.zeros(1)

    def launch(config: DecodeConfig) -> None:
        if config not in written:
            raise RuntimeError("out of resource:\n shared memory")
        out.fill_(written[config])

    return Case("decode_few", "1x8", launch, out, 1.0)


def once(launch: Callable[[], object]) -> Callable[[], float]:
    launch()
    return lambda: 0.5


class TestChoice:
    def test_what_does_not_work_is_left_out_and_named(self) -> None:
        broken = DecodeConfig(64, 4, 3)
        found = sweep(fake_case({FEW: 1.0, MANY: 3.0}), [FEW, broken, MANY], once, repeat=2)
        assert found.times == {FEW: [0.5, 0.5]}
        assert found.skipped == {
            broken: "RuntimeError: out of resource: shared memory",
            MANY: "its output differs from that of the first candidate",
        }

    def test_nothing_works(self) -> None:
        found = sweep(fake_case({}), [FEW], once, repeat=2)
        assert found.times == {}
        assert choose([found]) is None

    def test_the_best_over_all_shapes(self) -> None:
        """FEW is 10 % and 10 % off the best, MANY 50 % and 0 %."""
        third = DecodeConfig(16, 1, 1)
        sweeps = [
            Sweep({FEW: [1.1, 9.0], MANY: [1.5], third: [1.0]}, {}),
            Sweep({FEW: [22.0], MANY: [20.0]}, {third: "does not fit"}),
        ]
        assert choose(sweeps) == FEW
        assert choose([]) is None

    def test_candidates_are_distinct(self) -> None:
        pages, whole = (tune.prefill_candidates(contiguous=flag) for flag in (False, True))
        assert len({describe(config) for config in whole}) == len(whole) == 2 * len(pages)
        assert not any(config.use_tma for config in pages)
        decodes = tune.decode_candidates()
        assert len({describe(config) for config in decodes}) == len(decodes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")
def test_tiny_shapes_are_tuned_in_the_interpreter(tmp_path: Path) -> None:
    """Every part but the GPU's clock: cases, sweep, table and result."""
    pytest.importorskip("triton")
    small, large = PrefillConfig(16, 16, 4, 1), PrefillConfig(32, 32, 4, 1)
    shapes = [(1, 5)], [(3, 20)], [(1, 20)]
    options: dict[str, Any] = {
        "head_dim": 16, "dtype": torch.float32, "device": "cpu", "num_sms": 4,
    }  # fmt: skip
    cases = cases_of((*tune.PREFILL_KINDS, *tune.DECODE_KINDS), *shapes, **options)
    configs: dict[str, list[Any]] = {
        "prefill_paged": [small], "prefill_contiguous": [small, large], "prefill_few": [small],
        "decode_few": [DecodeConfig(16, 4, 1)],
    }  # fmt: skip
    found = tune.tune(
        cases, configs, head_dim=16, dtype=torch.float32, prepare=once, repeat=1
    )  # fmt: skip
    table, result = tune.tables([found], "cpu")
    assert [entry.kind for entry in table.prefill] == list(tune.PREFILL_KINDS)
    assert table.decode == (DecodeEntry("decode_few", 16, "float32", DecodeConfig(16, 4, 1)),)
    assert [entry["metric"] for entry in result.rows] == ["time", "flops"] * 4 + [
        "time", "bandwidth",
    ]  # fmt: skip
    (moved,) = result.select(metric="bandwidth")
    assert moved["median"] == 20 * 8 * 16 * 2 * 4 / 0.5  # tokens, heads, K and V, float32
    assert "chosen for decode_few, head_dim 16: N16 w4 s1" in result.notes
    assert '"benchmark": "tune"' in to_json(result)
    write_table(table, tmp_path / "table.json")
    assert read_table(tmp_path / "table.json") == table


def test_cases_of_one_kernel() -> None:
    pytest.importorskip("triton")
    options: dict[str, Any] = {
        "head_dim": 16, "dtype": torch.float32, "device": "cpu", "num_sms": 4,
    }  # fmt: skip
    shapes = [(1, 5), (2, 3)], [(3, 20)], [(1, 20), (40, 8)]
    for kind, count in (("prefill_paged", 2), ("prefill_few", 1), ("decode_many", 1)):
        found = list(cases_of({kind}, *shapes, **options))
        assert [case.kind for case in found] == [kind] * count


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")
def test_cases_call_the_kernels() -> None:
    """Every row is written, and the work counts what is seen."""
    pytest.importorskip("triton")
    for prefill in prefill_cases([(1, 5)], 16, torch.float32, "cpu"):
        prefill.out.fill_(torch.nan)
        prefill.launch(PrefillConfig(16, 16, 4, 1))
        assert prefill.out.isfinite().all()
        assert prefill.work == 4 * (1 + 2 + 3 + 4 + 5) * 16 * 16  # keys seen, heads, head_dim
    (few,) = few_cases([(3, 200)], 16, torch.float32, "cpu", 32)
    few.out.fill_(torch.nan)
    few.launch(PrefillConfig(16, 16, 4, 1))
    assert few.out.isfinite().all()
    assert (few.label, few.work) == ("3 of 200", 4 * (198 + 199 + 200) * 16 * 16)
    (decode,) = decode_cases([(2, 18)], 16, torch.float32, "cpu", 4)
    decode.out.fill_(torch.nan)
    decode.launch(DecodeConfig(16, 4, 1))
    assert decode.out.isfinite().all()
    assert (decode.kind, decode.label) == ("decode_few", "2x18")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tile sizes are measured on a GPU, and there is none"):
        tune.main(["--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
