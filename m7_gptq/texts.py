"""The vendored texts: two kinds, for calibration and (other passages) for evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import CheckpointError, ConfigError
from common.tokenizer import Tokenizer

FOLDER = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Text:
    """One vendored file.

    Attributes:
        file: Name under ``m7_gptq/data``; where it comes from is in ``SOURCES.md`` there.
        sha256: Hash of its bytes.
    """

    file: str
    sha256: str

    def read(self) -> str:
        """The text.

        Raises:
            CheckpointError: The file is not the one that the results were measured with.
        """
        data = (FOLDER / self.file).read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if found != self.sha256:
            raise CheckpointError(
                f"m7_gptq/data/{self.file} has sha256 {found[:16]}…, expected {self.sha256[:16]}…"
            )
        return data.decode("utf-8")


CALIBRATION = Text(
    "calibration_python.txt",
    "0e1872fdd8b1e3df1beee42d546833fc2745bd113677a0e2ff72cdec8de7abf9",
)
"""One kind of text: enough to see how GPTQ works, not to quantise a model for use."""

CALIBRATIONS: dict[str, Text] = {
    "python": CALIBRATION,
    "bible": Text(
        "calibration_bible.txt",
        "6d2503baf2443f6ae5a61bc3c81e4dd82df9b9e2f2a7b34da3508cf505053b1b",
    ),
}
EVALUATION: dict[str, Text] = {
    "python": Text(
        "evaluation_python.txt",
        "ae58e14f2780b08bc37cf019a5d5b9923e5554407c03f16b60d28fe57132fbea",
    ),
    "bible": Text(
        "evaluation_bible.txt",
        "d347d3a36d54d2056186b173d110c467156fa5631b23e6a83fc634675c5bbf53",
    ),
}


def mixed_batches(
    tokenizer: Tokenizer, texts: Sequence[str], *, num_samples: int, seq_len: int
) -> list[list[int]]:
    """Samples from several texts, as evenly as the count allows; the first texts get the rest.

    One kind of text is not enough: what GPTQ learns of its inputs' correlations, it trusts
    everywhere.

    Args:
        tokenizer: The model's tokenizer.
        texts: Long texts.
        num_samples: Samples wanted in all.
        seq_len: Tokens of each.

    Raises:
        ConfigError: A count is below 1, or a text is too short.
    """
    if num_samples < 1 or seq_len < 1:
        raise ConfigError(f"samples and seq_len must be at least 1, got {num_samples}, {seq_len}")
    share, rest = divmod(num_samples, len(texts))
    counts = [share + (index < rest) for index in range(len(texts))]
    return [
        sample
        for text, count in zip(texts, counts, strict=True)
        if count
        for sample in token_batches(tokenizer, text, num_samples=count, seq_len=seq_len)
    ]


def token_batches(
    tokenizer: Tokenizer, text: str, *, num_samples: int, seq_len: int
) -> list[list[int]]:
    """Cut a text into samples of equal length, spread evenly over it, none overlapping.

    Args:
        tokenizer: The model's tokenizer.
        text: A long text.
        num_samples: Samples wanted.
        seq_len: Tokens of each.

    Returns:
        ``num_samples`` lists of ``seq_len`` ids.

    Raises:
        ConfigError: A count is below 1, or the text is too short.
    """
    if num_samples < 1 or seq_len < 1:
        raise ConfigError(f"samples and seq_len must be at least 1, got {num_samples}, {seq_len}")
    ids = tokenizer.encode(text, add_special_tokens=False)
    need = num_samples * seq_len
    if need > len(ids):
        raise ConfigError(
            f"{num_samples} samples of {seq_len} tokens need {need} tokens, "
            f"the calibration text has {len(ids)}"
        )
    gap = (len(ids) - need) // num_samples
    starts = [index * (seq_len + gap) for index in range(num_samples)]
    return [ids[start : start + seq_len] for start in starts]
