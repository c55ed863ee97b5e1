"""Packing: the identity both ways, the layout bit by bit, and the +1 trap."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from m7_gptq.packing import (
    FORMATS,
    SUPPORTED_BITS,
    Format,
    pack_columns,
    pack_rows,
    pack_zeros,
    per_word,
    unpack_columns,
    unpack_rows,
    unpack_zeros,
)

BITS = st.sampled_from(SUPPORTED_BITS)


@st.composite
def matrices(draw: DrawFn, packed_dim: int) -> tuple[torch.Tensor, int]:
    """Integers of some width, with a whole number of words along one dimension."""
    bits = draw(BITS)
    shape = [draw(st.integers(1, 9)), draw(st.integers(1, 9))]
    shape[packed_dim] = per_word(bits) * draw(st.integers(1, 4))
    values = st.integers(0, 2**bits - 1)
    flat = draw(st.lists(values, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    return torch.tensor(flat, dtype=torch.uint8).view(shape), bits


class TestIdentity:
    @settings(deadline=None)
    @given(matrices(packed_dim=0))
    def test_rows(self, case: tuple[torch.Tensor, int]) -> None:
        values, bits = case
        words = pack_rows(values, bits)
        assert words.dtype == torch.int32
        assert words.shape == (values.shape[0] * bits // 32, values.shape[1])
        assert torch.equal(unpack_rows(words, bits), values)

    @settings(deadline=None)
    @given(matrices(packed_dim=1))
    def test_columns(self, case: tuple[torch.Tensor, int]) -> None:
        values, bits = case
        words = pack_columns(values, bits)
        assert words.shape == (values.shape[0], values.shape[1] * bits // 32)
        assert torch.equal(unpack_columns(words, bits), values)

    @settings(deadline=None)
    @given(matrices(packed_dim=1), st.sampled_from(FORMATS))
    def test_zeros_in_every_format(self, case: tuple[torch.Tensor, int], form: Format) -> None:
        zeros, bits = case
        assert torch.equal(unpack_zeros(pack_zeros(zeros, bits, form), bits, form), zeros)

    @settings(deadline=None)
    @given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=12), BITS)
    def test_any_word_survives_unpacking(self, words: list[int], bits: int) -> None:
        packed = torch.tensor(words, dtype=torch.int32)[:, None]
        assert torch.equal(pack_rows(unpack_rows(packed, bits), bits), packed)


class TestLayout:
    def test_the_first_input_channel_is_in_the_lowest_bits(self) -> None:
        column = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8])[:, None]
        assert pack_rows(column, 4).item() == 0x8765_4321 - 2**32
        assert pack_rows(column, 8).flatten().tolist() == [0x0403_0201, 0x0807_0605]

    def test_the_first_output_channel_is_in_the_lowest_bits(self) -> None:
        row = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0]])
        assert pack_columns(row, 4).item() == 0x0765_4321

    def test_the_sign_bit_is_the_last_value(self) -> None:
        column = torch.tensor([0, 0, 0, 255])[:, None]
        assert pack_rows(column, 8).item() == -(2**24)


class TestZeroPoints:
    @pytest.mark.parametrize(("form", "word"), [("gptq", 0x7777_7777), ("gptq_v2", -0x7777_7778)])
    def test_symmetric_words_of_both_formats(self, form: Format, word: int) -> None:
        assert pack_zeros(torch.full((1, 8), 8), 4, form).item() == word

    def test_a_zero_of_zero_wraps_in_v1(self) -> None:
        assert pack_zeros(torch.zeros(1, 8, dtype=torch.uint8), 4, "gptq").item() == -1
        assert pack_zeros(torch.zeros(1, 4, dtype=torch.uint8), 8, "gptq").item() == -1

    def test_no_carry_between_neighbours(self) -> None:
        """0xffffffff + 0x11111111 carries; each value apart does not."""
        word = torch.tensor([[-1]], dtype=torch.int32)
        assert unpack_zeros(word, 4, "gptq").tolist() == [[0] * 8]
        assert unpack_zeros(word, 8, "gptq").tolist() == [[0] * 4]
        mixed = torch.tensor([[0x0F0F_0F0F]], dtype=torch.int32)
        assert unpack_zeros(mixed, 4, "gptq").tolist() == [[0, 1] * 4]

    @settings(deadline=None)
    @given(matrices(packed_dim=1))
    def test_whole_words_lend_and_give_back(self, case: tuple[torch.Tensor, int]) -> None:
        """GPTQModel's subtraction from the word, undone by its sum, whatever was borrowed."""
        zeros, bits = case
        ones = 0x1111_1111 if bits == 4 else 0x0101_0101
        stored = pack_zeros(zeros, bits, "gptq_v2") - ones
        assert torch.equal(unpack_zeros(stored, bits, "gptq", whole_words=True), zeros)

    def test_a_borrow_is_misread_value_by_value(self) -> None:
        zeros = torch.tensor([[0, 5, 8, 8, 8, 8, 8, 8]])
        stored = pack_zeros(zeros, 4, "gptq_v2") - 0x1111_1111
        assert unpack_zeros(stored, 4, "gptq").tolist() == [[0, 4, 8, 8, 8, 8, 8, 8]]
        assert unpack_zeros(stored, 4, "gptq", whole_words=True).tolist() == zeros.tolist()

    def test_reading_one_format_as_the_other_is_off_by_one(self) -> None:
        zeros = torch.arange(1, 9)[None]
        misread = unpack_zeros(pack_zeros(zeros, 4, "gptq_v2"), 4, "gptq")
        assert misread.tolist() == [[2, 3, 4, 5, 6, 7, 8, 9]]
