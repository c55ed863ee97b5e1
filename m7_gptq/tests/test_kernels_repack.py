"""Repacking: the identity for every way in which a checkpoint stores a layer, bit by bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m7_gptq.checkpoint import LinearFormat
from m7_gptq.kernels.repack import SLICE, PackedWeight, pack_tiles, unpack_tiles
from m7_gptq.linear import GPTQLinear
from m7_gptq.packing import FORMATS, Format, per_word, unpack_rows, unpack_zeros
from m7_gptq.tests.kernel_cases import Order, StoredLayer, packed_bytes, stored_layer

ORDERS: tuple[Order, ...] = ("plain", "act-order", "uneven")


def assert_same(layer: StoredLayer, packed: PackedWeight) -> None:
    """Integers, zeros and groups of every input are those of the checkpoint."""
    ints, zeros, g_idx = packed.integers()
    assert torch.equal(ints, unpack_rows(layer.qweight, layer.bits))
    assert torch.equal(zeros, unpack_zeros(layer.qzeros, layer.bits, layer.form))
    assert torch.equal(g_idx, layer.g_idx.long())
    assert torch.equal(packed.dequantised(), layer.dense())


class TestIdentity:
    @pytest.mark.parametrize("order", ORDERS)
    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize("group_size", [16, 24, 32, 64, 128, 160, -1])
    @pytest.mark.parametrize("bits", [4, 8])
    def test_every_group_size(self, bits: int, group_size: int, form: Format, order: Order) -> None:
        layer = stored_layer(200, 24, bits=bits, group_size=group_size, form=form, order=order)
        assert_same(layer, layer.packed())

    @settings(deadline=None, max_examples=60)
    @given(
        words=st.integers(1, 40),
        columns=st.integers(1, 4),
        bits=st.sampled_from([4, 8]),
        group_size=st.integers(1, 70),
        order=st.sampled_from(ORDERS),
        seed=st.integers(0, 100),
    )
    def test_any_layer(
        self, words: int, columns: int, bits: int, group_size: int, order: Order, seed: int
    ) -> None:
        count = per_word(bits)
        layer = stored_layer(
            words * count, columns * count, bits=bits, group_size=group_size, order=order, seed=seed
        )
        assert_same(layer, layer.packed())

    @settings(deadline=None)
    @given(st.sampled_from([4, 8]), st.integers(1, 3), st.integers(1, 5), st.integers(0, 99))
    def test_tiles(self, bits: int, tiles: int, outputs: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (tiles * SLICE * per_word(bits), outputs)
        values = torch.randint(2**bits, shape, generator=generator).to(torch.uint8)
        words = pack_tiles(values, bits)
        assert words.shape == (tiles, outputs, SLICE)
        assert torch.equal(unpack_tiles(words, bits), values)

    def test_without_g_idx_groups_follow_each_other(self) -> None:
        for group_size in (32, -1):
            layer = stored_layer(96, 8, group_size=group_size)
            packed = PackedWeight.from_checkpoint(
                layer.qweight, layer.qzeros, layer.scales, None, 4, group_size, 0
            )
            assert_same(layer, packed)

    def test_columns_of_a_merged_layer(self) -> None:
        """Views, as a merged layer's parts are."""
        layer = stored_layer(64, 40)
        part = PackedWeight.from_checkpoint(
            layer.qweight[:, 8:24], layer.qzeros[:, 1:3], layer.scales[:, 8:24],
            layer.g_idx, 4, 32, 0,
        )  # fmt: skip
        assert torch.equal(part.dequantised(), layer.dense()[8:24])

    def test_the_tensors_of_a_linear_layer(self) -> None:
        """What a loaded ``GPTQLinear`` keeps, whatever the checkpoint's format was."""
        stored = stored_layer(64, 16, form="gptq", order="act-order")
        form = LinearFormat(4, 32, "gptq", torch.float16, True, False)
        linear = GPTQLinear(
            "x", 64, (16,), False, form, bias=False, dtype=torch.float32, device="cpu"
        )
        for name in ("qweight", "qzeros", "scales", "g_idx"):
            linear.load_shard(name, 0, getattr(stored, name))
        packed = PackedWeight.from_checkpoint(
            linear.qweight, linear.qzeros, linear.scales, linear.g_idx[0], 4, 32, 0
        )
        assert torch.equal(packed.dequantised().T, linear.dequantised(0, 16))


class TestLayout:
    def test_a_word_holds_one_input_of_each_slice(self) -> None:
        values = torch.zeros(256, 2, dtype=torch.uint8)
        values[128 + 5 * 16 + 3, 1] = 9  # tile 1, slice 5, input 3
        words = pack_tiles(values, 4)
        assert words[1, 1, 3].item() == 9 << 20
        assert int((words != 0).sum()) == 1

    def test_an_output_s_words_are_consecutive(self) -> None:
        packed = stored_layer(256, 8, group_size=128).packed()
        assert packed.words.shape == (2, 8, 16)
        assert packed.words.stride() == (128, 16, 1)

    def test_eight_bits_take_half_the_inputs(self) -> None:
        values = torch.arange(64, dtype=torch.uint8)[:, None]
        (words,) = pack_tiles(values, 8)[0].tolist()
        assert words[1] == 1 | 17 << 8 | 33 << 16 | 49 << 24


class TestPlaces:
    @pytest.mark.parametrize("group_size", [16, 48, 128, -1])
    def test_plain_order_needs_no_list(self, group_size: int) -> None:
        assert stored_layer(200, 8, group_size=group_size).packed().source is None

    def test_act_order_sorts_by_group(self) -> None:
        layer = stored_layer(96, 8, group_size=32, order="act-order")
        source = layer.packed().source
        assert source is not None
        assert source[96:].tolist() == [-1] * 32
        assert sorted(source[:96].tolist()) == list(range(96))
        for group in range(3):
            own = source[group * 32 : group * 32 + 32].tolist()
            assert own == sorted(own)
            assert set(layer.g_idx[own].tolist()) == {group}

    def test_a_group_of_24_is_padded_to_32(self) -> None:
        packed = stored_layer(48, 8, group_size=24).packed()
        assert packed.group_width == 32
        assert packed.source is not None
        assert packed.source[:64].tolist() == [
            *range(24), *[-1] * 8, *range(24, 48), *[-1] * 8,
        ]  # fmt: skip

    def test_one_group_is_as_wide_as_the_layer(self) -> None:
        packed = stored_layer(200, 8, group_size=-1).packed()
        assert packed.group_width == packed.places == 256


class TestSize:
    def test_bits_per_weight(self) -> None:
        """4 + (16 + 4) / 128 bits, whether zeros differ or not."""
        packed = stored_layer(1024, 64, group_size=128).packed()
        assert packed.nbytes * 8 / (1024 * 64) == 4.15625
        assert (packed.in_features, packed.out_features) == (1024, 64)

    @pytest.mark.parametrize("bits", [4, 8])
    @pytest.mark.parametrize("inputs", [64, 96, 256])
    def test_bytes_follow_from_the_layout(self, inputs: int, bits: int) -> None:
        packed = stored_layer(inputs, 64, group_size=16, bits=bits).packed()
        assert packed.nbytes == packed_bytes(inputs, 64, 16, bits)

    def test_act_order_adds_one_number_per_input(self) -> None:
        plain = stored_layer(256, 64, group_size=128)
        permuted = stored_layer(256, 64, group_size=128, order="act-order")
        assert permuted.packed().nbytes == plain.packed().nbytes + 256 * 4

    @pytest.mark.parametrize("order", ["plain", "act-order"])
    def test_it_moves_as_a_whole(self, order: Order) -> None:
        moved = stored_layer(64, 8, order=order).packed().to("meta")
        tensors = [moved.words, moved.zeros, moved.scales]
        tensors += [] if moved.source is None else [moved.source]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        assert len(tensors) == (3 if order == "plain" else 4)


def test_shapes_that_do_not_fit_are_our_mistake() -> None:
    packed = stored_layer(64, 8).packed()
    with pytest.raises(AssertionError):
        PackedWeight(packed.words, packed.zeros[:1], packed.scales, None, 4, 32, 64)
    with pytest.raises(AssertionError):
        PackedWeight(packed.words, packed.zeros, packed.scales, None, 4, 24, 64)
