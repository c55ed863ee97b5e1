import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.devices import H100_80GB
from common.environment import DeviceInfo
from common.errors import ConfigError
from common.peaks import measured_bandwidth, measured_flops, spec_peaks
from common.timing import (
    Measurement,
    device_timer,
    interleaved,
    interleaved_calls,
    measure,
    synchronizer,
)


class TestMeasurement:
    def test_by_hand(self) -> None:
        got = Measurement((3.0, 1.0, 2.0, 4.0))
        assert (got.median, got.min, got.max, got.n) == (2.5, 1.0, 4.0, 4)
        assert got.spread == pytest.approx(3.0 / 2.5)
        assert got.map(lambda seconds: 12 / seconds).values == (4.0, 12.0, 6.0, 3.0)

    @given(st.lists(st.floats(0.001, 1e6), min_size=1))
    def test_order_of_the_numbers(self, values: list[float]) -> None:
        got = Measurement(tuple(values))
        assert got.min <= got.median <= got.max
        assert got.spread >= 0

    def test_zero_has_no_relative_spread(self) -> None:
        assert Measurement((0.0, 0.0)).spread == 0.0

    def test_empty(self) -> None:
        with pytest.raises(ConfigError, match="at least one value"):
            Measurement(())


class TestInterleaved:
    def test_runs_variants_in_turn_after_the_warm_up(self) -> None:
        calls: list[str] = []
        fns = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
        got = interleaved(fns, repeat=3, warmup=1)
        assert calls == list("ab" + "ababab")
        assert {name: item.n for name, item in got.items()} == {"a": 3, "b": 3}

    def test_collects_what_the_functions_return(self) -> None:
        numbers = iter(range(100))
        fns = {"a": lambda: next(numbers), "b": lambda: -next(numbers)}
        assert interleaved_calls(fns, repeat=2, warmup=1) == {"a": [2, 4], "b": [-3, -5]}

    def test_waits_for_the_device_on_both_sides(self) -> None:
        log: list[str] = []
        measure(lambda: log.append("fn"), repeat=2, warmup=0, sync=lambda: log.append("sync"))
        assert log == ["sync", "fn", "sync"] * 2

    def test_measures_seconds(self) -> None:
        got = measure(lambda: time.sleep(0.01), repeat=2, warmup=0)
        assert 0.009 < got.min < 0.5

    @pytest.mark.parametrize(("repeat", "warmup"), [(0, 1), (1, -1)])
    def test_refusals(self, repeat: int, warmup: int) -> None:
        with pytest.raises(ConfigError, match="repeat of at least 1"):
            measure(lambda: None, repeat, warmup)
        with pytest.raises(ConfigError, match="need functions"):
            interleaved({})


class TestDevices:
    def test_a_cpu_has_nothing_to_wait_for(self) -> None:
        calls: list[int] = []
        synchronizer("cpu")()
        timer = device_timer("cpu")(lambda: calls.append(1))
        assert timer() >= 0
        assert calls == [1]

    def test_measured_peaks_are_labelled_so(self) -> None:
        copy = measured_bandwidth(num_bytes=2**20, repeat=2)
        product = measured_flops(size=64, repeat=2)
        assert copy.source == product.source == "measured"
        assert copy.value > 1e7
        assert product.value > 1e6
        assert copy.device == product.device

    def test_spec_sheet_by_device_name(self) -> None:
        found = spec_peaks(DeviceInfo("cuda", "NVIDIA H100 80GB HBM3", 132, 79 * 2**30))
        assert found is not None
        assert [item.value for item in found] == [H100_80GB.spec_bandwidth, H100_80GB.spec_flops]
        assert {item.source for item in found} == {"spec sheet"}
        assert spec_peaks(DeviceInfo("cuda", "NVIDIA GeForce RTX 4090", 128, 24 * 2**30))

    @pytest.mark.parametrize(
        ("kind", "name", "gib"),
        [
            ("cuda", "NVIDIA H100 PCIe", 79),  # slower memory than the SXM card
            ("cuda", "NVIDIA A100-SXM4-40GB", 40),
            ("cuda", "NVIDIA T4", 15),
            ("cpu", "H100", 80),
        ],
    )
    def test_no_spec_sheet_is_guessed(self, kind: str, name: str, gib: int) -> None:
        assert spec_peaks(DeviceInfo(kind, name, 1, gib * 2**30)) is None  # type: ignore[arg-type]
