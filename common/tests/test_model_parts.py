"""The parts of the model by themselves: linear layers, norms, the KV store, the hooks."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from common.errors import CheckpointError
from common.model.interfaces import KVSink, LoadableModule
from common.model.linear import DenseLinear, TiedHead, VectorParameter, dense_linear_factory
from common.model.ops import TorchOps, store_kv
from common.model.transformer import Transformer
from common.model_config import KVSpec, ModelConfig
from common.testing.checkpoints import tiny_config

OPS = TorchOps()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestDenseLinear:
    def test_split_gives_views_of_one_product(self) -> None:
        layer = DenseLinear("x", 3, (2, 1), True, True, dtype=torch.float32, device="cpu")
        generator = torch.Generator().manual_seed(0)
        layer.weight.data = torch.randn(3, 3, generator=generator)
        assert layer.bias is not None
        layer.bias.data = torch.randn(3, generator=generator)
        x = torch.randn(5, 3, generator=generator)
        first, second = layer(x)
        assert (first.shape, second.shape) == ((5, 2), (5, 1))
        expected = x @ layer.weight.T + layer.bias
        torch.testing.assert_close(torch.cat((first, second), -1), expected)

    def test_it_says_what_it_expects_and_takes_nothing_else(self) -> None:
        layer = DenseLinear("x", 3, (2, 1), True, True, dtype=torch.float32, device="cpu")
        assert isinstance(layer, LoadableModule)
        assert layer.expected_shards() == {
            ("weight", 0), ("weight", 1), ("bias", 0), ("bias", 1)
        }  # fmt: skip
        for name, shard in (("scales", 0), ("weight", 2)):
            with pytest.raises(CheckpointError, match=rf"x \(shard {shard}\) has no tensor"):
                layer.load_shard(name, shard, torch.ones(1))

    def test_one_output_is_not_split(self) -> None:
        layer = DenseLinear("x", 3, (2,), False, False, dtype=torch.float32, device="cpu")
        layer.weight.data = randn(2, 3)
        x = randn(4, 3, seed=1)
        torch.testing.assert_close(layer(x), x @ layer.weight.T)

    def test_a_tied_head_loads_nothing(self) -> None:
        embedding = VectorParameter("embed_tokens", (7, 3), torch.float32, "cpu")
        head = TiedHead(embedding.weight)
        assert head.expected_shards() == set()
        with pytest.raises(CheckpointError, match="lm_head is tied to the embedding"):
            head.load_shard("weight", 0, torch.ones(7, 3))
        with pytest.raises(CheckpointError, match="embed_tokens has no tensor 'bias'"):
            embedding.load_shard("bias", 0, torch.ones(7))


class TestNorms:
    def test_the_formula(self) -> None:
        x, weight = randn(5, 8), randn(8, seed=1)
        expected = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight
        torch.testing.assert_close(OPS.rms_norm(x, weight, 1e-6), expected)

    def test_zeros_stay_zero(self) -> None:
        assert torch.equal(OPS.rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-6), torch.zeros(2, 8))

    def test_bfloat16_takes_the_mean_in_float32(self) -> None:
        # 4,096 ones beside one 256: in bfloat16 the running sum of squares would stop growing.
        x = torch.ones(1, 4097)
        x[0, 0] = 256.0
        weight = torch.ones(4097)
        exact = OPS.rms_norm(x, weight, 1e-6)
        rounded = OPS.rms_norm(x.bfloat16(), weight.bfloat16(), 1e-6)
        assert rounded.dtype == torch.bfloat16
        torch.testing.assert_close(rounded.float(), exact, rtol=2**-8, atol=0)

    def test_the_residual_is_added_first(self) -> None:
        x, residual, weight = randn(3, 8), randn(3, 8, seed=1), randn(8, seed=2)
        normed, stream = OPS.add_rms_norm(x, residual, weight, 1e-6)
        torch.testing.assert_close(stream, x + residual)
        torch.testing.assert_close(normed, OPS.rms_norm(x + residual, weight, 1e-6))

    def test_swiglu(self) -> None:
        layer = DenseLinear("x", 3, (2, 2), False, True, dtype=torch.float32, device="cpu")
        layer.weight.data = randn(4, 3)
        x = randn(5, 3, seed=1)
        gate, up = x @ layer.weight[:2].T, x @ layer.weight[2:].T
        expected = gate / (1 + torch.exp(-gate)) * up
        torch.testing.assert_close(OPS.mlp_gate_up(layer, x), expected)


class TestStoreKV:
    def test_each_token_goes_to_its_slot_and_padding_nowhere(self) -> None:
        k_cache, v_cache = torch.zeros(3, 4, 2, 8), torch.zeros(3, 4, 2, 8)
        k, v = randn(4, 2, 8), randn(4, 2, 8, seed=1)
        slots = torch.tensor([0, 11, -1, 6])
        store_kv(k, v, KVSink(k_cache, v_cache, slots))
        for token, (block, place) in ((0, (0, 0)), (1, (2, 3)), (3, (1, 2))):
            assert torch.equal(k_cache[block, place], k[token])
            assert torch.equal(v_cache[block, place], v[token])
        assert int((k_cache.abs().sum((-1, -2)) > 0).sum()) == 3

    def test_the_op_stores_the_rotated_key_and_the_plain_value(self) -> None:
        k_cache, v_cache = torch.zeros(1, 4, 2, 8), torch.zeros(1, 4, 2, 8)
        q, k, v = randn(2, 4, 8), randn(2, 2, 8, seed=1), randn(2, 2, 8, seed=2)
        rows = torch.cat((randn(2, 8, seed=3).cos(), randn(2, 8, seed=3).sin()), -1)
        sink = KVSink(k_cache, v_cache, torch.tensor([2, 1]))
        _, rotated = OPS.qk_norm_rope(q, k, v, None, None, 1e-6, rows, sink)
        assert not torch.equal(rotated, k)
        assert torch.equal(k_cache[0, [2, 1]], rotated)
        assert torch.equal(v_cache[0, [2, 1]], v)


class Recorder:
    """An attend that returns the query and remembers the shapes it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.calls.append((layer, tuple(q.shape), tuple(k.shape), tuple(v.shape)))
        return q

    def kv_sink(self, layer: int) -> None:
        return None


class TestTransformer:
    @staticmethod
    def model(device: str = "cpu", **changes: Any) -> Transformer:
        model = Transformer(
            ModelConfig.from_dict(tiny_config("qwen3", **changes)),
            ops=OPS,
            linear=dense_linear_factory(torch.float32, device),
            dtype=torch.float32,
            device=device,
        )
        if device == "cpu":
            for index, parameter in enumerate(model.parameters()):
                parameter.data = 0.1 * randn(*parameter.shape, seed=index)
        return model

    @pytest.mark.parametrize("shape", [(5,), (2, 3), (1, 1)])
    def test_any_leading_shape(self, shape: tuple[int, ...]) -> None:
        attend, ids = Recorder(), torch.zeros(shape, dtype=torch.int64)
        model = self.model()
        hidden = model(ids, ids, attend)
        assert hidden.shape == (*shape, 64)
        assert attend.calls == [
            (layer, (*shape, 4, 32), (*shape, 2, 32), (*shape, 2, 32)) for layer in range(3)
        ]
        assert model.logits(hidden.flatten(0, -2)).shape == (len(hidden.flatten(0, -2)), 320)

    def test_the_hook_sees_the_stream_after_embedding_and_every_layer(self) -> None:
        model, seen = self.model(), []
        ids = torch.tensor([3, 4])
        hidden = model(ids, ids, Recorder(), lambda i, x: seen.append((i, x)))
        assert [index for index, _ in seen] == [0, 1, 2, 3]
        assert torch.equal(seen[0][1], model.embed_tokens.weight[ids])
        normed, _ = model.norm(seen[-1][1])
        torch.testing.assert_close(normed, hidden)
        assert torch.equal(hidden, model(ids, ids, Recorder()))

    def test_positions_index_the_rope_table(self) -> None:
        model = self.model(max_positions=16)
        assert model.cos_sin.shape == (16, 64)
        ids = torch.tensor([3, 3])
        at_start, later = (model(ids, torch.tensor(p), Recorder()) for p in ([0, 1], [5, 1]))
        assert torch.equal(at_start[1], later[1])
        assert not torch.equal(at_start[0], later[0])

    def test_it_exists_on_the_meta_device(self) -> None:
        model = self.model("meta")
        assert {p.device.type for p in model.parameters()} == {"meta"}
        assert model.cos_sin.device.type == model.device.type == "meta"

    def test_kv_spec_follows_the_running_dtype(self) -> None:
        assert self.model().kv_spec() == KVSpec(3, 2, 32, "float32")

    def test_names_of_modules_are_unique(self) -> None:
        names = [name for name, _ in self.model().named_parameters()]
        assert len(names) == len(set(names)) == 2 + 3 * 8
        assert all(re.fullmatch(r"[a-z_0-9.]+", name) for name in names)
