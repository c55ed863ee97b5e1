import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.plot_style import HUES, INK, hue, save_svg, text_on
from common.plots import step_timeline
from common.tests.sample_traces import busy_trace
from common.trace import Trace

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def trace() -> Trace:
    return busy_trace()


def contrast(one: str, other: str) -> float:
    """WCAG contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


class TestStyle:
    def test_ink_can_be_read_on_both_schemes(self) -> None:
        assert contrast(INK, "#ffffff") > 3.9
        assert contrast(INK, "#1e2129") > 3.9  # Material's slate

    @pytest.mark.parametrize("colour", HUES)
    def test_text_on_a_solid_hue_can_be_read(self, colour: str) -> None:
        assert contrast(text_on(colour), colour) > 4.5

    def test_hues_repeat(self) -> None:
        assert hue(8) == hue(0)
        assert len(set(HUES)) == 8


class TestSaveSvg:
    def save(self, trace: Trace, path: Path) -> str:
        ax = step_timeline(trace, title="A & B")
        return save_svg(ax, path, title="Steps <1>", desc='Says "more" & less').read_text()

    def test_is_deterministic(self, trace: Trace, tmp_path: Path) -> None:
        one = self.save(trace, tmp_path / "a" / "figure.svg")
        two = self.save(trace, tmp_path / "b" / "figure.svg")
        assert one == two

    def test_carries_nothing_of_this_run(self, trace: Trace, tmp_path: Path) -> None:
        svg = self.save(trace, tmp_path / "figure.svg")
        assert svg.startswith("<svg ")
        for word in ("<\\?xml", "DOCTYPE", "metadata", "Matplotlib", "20\\d\\d-\\d\\d", "<style"):
            assert not re.search(word, svg), word

    def test_is_accessible(self, trace: Trace, tmp_path: Path) -> None:
        root = ET.fromstring(self.save(trace, tmp_path / "figure.svg"))
        space = "{http://www.w3.org/2000/svg}"
        assert root.get("role") == "img"
        assert root.get("aria-labelledby") == "figure-title figure-desc"
        title, desc = root[0], root[1]
        assert (title.tag, title.text) == (f"{space}title", "Steps <1>")
        assert (desc.tag, desc.text) == (f"{space}desc", 'Says "more" & less')
        words = [text.text for text in root.iter(f"{space}text")]
        assert "A & B" in words
        assert "engine step" in words

    def test_ids_are_unique_per_file_and_references_hold(
        self, trace: Trace, tmp_path: Path
    ) -> None:
        svg = self.save(trace, tmp_path / "m3 blocks.svg")
        ids = re.findall(r'\bid="([^"]+)"', svg)
        assert len(ids) == len(set(ids))
        assert all(name.startswith("m3-blocks-") for name in ids)
        used = re.findall(r"url\(#([^)]+)\)", svg) + re.findall(r'href="#([^"]+)"', svg)
        assert used
        assert set(used) <= set(ids)

    def test_background_is_transparent_and_ink_can_be_themed(
        self, trace: Trace, tmp_path: Path
    ) -> None:
        svg = self.save(trace, tmp_path / "figure.svg")
        assert f"var(--folo-ink, {INK})" in svg
        assert "#ffffff" not in svg.split("<text", 1)[0].split('id="figure-patch_3"')[0]
        assert INK not in svg.replace(f"var(--folo-ink, {INK})", "")

    def test_needs_words_for_readers_who_cannot_see(self, tmp_path: Path) -> None:
        fig, _ = plt.subplots()
        with pytest.raises(ConfigError, match="needs a title and a desc"):
            save_svg(fig, tmp_path / "x.svg", title="x", desc=" ")
        assert not (tmp_path / "x.svg").exists()
