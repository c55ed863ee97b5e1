"""Which backend is picked, what the log says, and what is refused with which reason."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from common.errors import ConfigError
from common.testing.conformance import build
from common.testing.fixtures import TinyModel
from m4_flash.backends.base import AttentionShape
from m4_flash.backends.select import AUTOMATIC, BACKENDS, select_backend

CPU = AttentionShape(torch.device("cpu"), torch.float32, 4, 2, 32)


def test_a_cpu_gets_sdpa_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert select_backend("auto", CPU).name == "sdpa"
    assert "attention backend sdpa" in caplog.text
    assert "CUDA device" in caplog.text


@pytest.mark.parametrize("name", ["naive", "paged", "sdpa", "triton"])
def test_a_name_is_taken_as_it_is(name: str) -> None:
    assert select_backend(name, CPU).name == name


def test_an_unknown_name_lists_the_known_ones() -> None:
    known = "auto, naive, paged, sdpa, flash_attn, triton"
    with pytest.raises(ConfigError, match=f"must be one of {known}, got 'fa3'"):
        select_backend("fa3", CPU)


def test_an_impossible_choice_has_its_reason() -> None:
    with pytest.raises(ConfigError, match=r"'flash_attn' cannot be used: .*CUDA device, got cpu"):
        select_backend("flash_attn", CPU)


def test_names_are_the_backends_own_and_automatic_ones_are_known() -> None:
    assert all(backend.name == name for name, backend in BACKENDS.items())
    assert set(AUTOMATIC) <= set(BACKENDS.values())
    assert AUTOMATIC[-1].name == "sdpa"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_backend": "magic"}, "attention_backend must be one of"),
        ({"attention_backend": "flash_attn"}, "needs a CUDA device"),
        ({"attention_backend": "triton", "block_size": 6}, "power of two, got 6"),
    ],
    ids=str,
)
def test_the_engine_refuses(tiny: TinyModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("m4_flash", tiny, num_blocks=8, **options)
