"""The division of a device's memory, and its activation formula against what PyTorch allocates."""

import dataclasses
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.devices import GIB, kv_pool_tokens
from common.errors import ConfigError, OutOfMemoryError
from common.model.linear import dense_linear_factory
from common.model.ops import TorchOps
from common.model.rope import rope_table
from common.model.transformer import Transformer
from common.model_config import ModelConfig
from common.model_costs import weight_bytes
from common.qwen3 import QWEN3_0_6B
from common.testing.checkpoints import tiny_config
from m0_init.memory_plan import (
    activation_peak,
    parts_of_weights,
    plan_memory,
    rope_table_bytes,
)

MIB = 1024**2


class TestPlan:
    def test_qwen3_on_24_gib(self) -> None:
        plan = plan_memory(QWEN3_0_6B, 24 * GIB, activation_bytes=GIB, max_model_len=40_960)
        assert plan.weight_bytes == 1_192_099_840
        assert plan.rope_bytes == 40 * MIB
        assert plan.kv_bytes_per_token == 114_688
        # The sheet's 11,404.3 blocks of 1.75 MiB, less the rope table's 40 MiB: 22.9 of them.
        assert plan.num_blocks == 11_381
        assert plan.num_tokens == 16 * plan.num_blocks

    def test_the_rope_table_is_as_large_as_planned(self) -> None:
        config = ModelConfig.from_dict(tiny_config("llama"))
        table = rope_table(config.rope, config.head_dim, 100)
        assert rope_table_bytes(config, 100) == table.nbytes
        assert rope_table_bytes(config) == table.nbytes * 512 // 100

    def test_it_agrees_with_the_constants_sheet(self) -> None:
        rope = rope_table_bytes(QWEN3_0_6B)
        plan = plan_memory(QWEN3_0_6B, 8 * GIB, activation_bytes=GIB - rope, block_size=1)
        assert plan.num_tokens == kv_pool_tokens(QWEN3_0_6B, 8 * GIB)

    @given(
        memory=st.integers(2 * GIB, 200 * GIB),
        utilization=st.floats(0.8, 1.0),
        free_share=st.floats(0.8, 1.0),
        block_size=st.sampled_from([1, 16, 256]),
    )
    def test_the_parts_add_up_and_no_block_is_wasted(
        self, memory: int, utilization: float, free_share: float, block_size: int
    ) -> None:
        free = int(memory * free_share)
        plan = plan_memory(
            QWEN3_0_6B,
            memory,
            free_bytes=free,
            utilization=utilization,
            activation_bytes=100 * MIB,
            block_size=block_size,
        )
        parts = plan.parts()
        assert sum(parts.values()) == memory
        assert plan.budget_bytes == min(int(memory * utilization), free)
        taken = memory - plan.unused_bytes
        block = block_size * plan.kv_bytes_per_token
        assert taken <= plan.budget_bytes < taken + block

    def test_the_dtype_changes_weights_and_kv(self) -> None:
        half, full = (plan_memory(QWEN3_0_6B, 24 * GIB, dtype=d) for d in ("bfloat16", "float32"))
        assert full.weight_bytes == 2 * half.weight_bytes
        assert full.kv_bytes_per_token == 2 * half.kv_bytes_per_token

    def test_sequences_take_whole_blocks(self) -> None:
        plan = dataclasses.replace(plan_memory(QWEN3_0_6B, 24 * GIB), num_blocks=10)
        assert [plan.max_sequences(n) for n in (1, 16, 17, 80, 81, 160, 161)] == [
            10, 10, 5, 2, 1, 1, 0,
        ]  # fmt: skip

    def test_exactly_one_block(self) -> None:
        needed = weight_bytes(QWEN3_0_6B) + rope_table_bytes(QWEN3_0_6B) + GIB + 16 * 114_688
        plan = plan_memory(QWEN3_0_6B, needed, utilization=1.0, activation_bytes=GIB)
        assert (plan.num_blocks, plan.unused_bytes) == (1, 0)
        message = r"2\.15 GiB needed \(weights 1\.11 GiB, rope table 40\.0 MiB, activations 1\.00"
        with pytest.raises(OutOfMemoryError, match=message):
            plan_memory(QWEN3_0_6B, needed - 1, utilization=1.0, activation_bytes=GIB)

    def test_what_others_hold_counts(self) -> None:
        with pytest.raises(OutOfMemoryError, match=r"budget is 1\.00 GiB of 80\.00 GiB"):
            plan_memory(QWEN3_0_6B, 80 * GIB, free_bytes=GIB)

    @pytest.mark.parametrize("value", [0.0, -0.5, 1.1, float("nan")])
    def test_utilization_is_a_share(self, value: float) -> None:
        with pytest.raises(ConfigError, match=r"utilization must be in \(0, 1\]"):
            plan_memory(QWEN3_0_6B, GIB, utilization=value)

    @pytest.mark.parametrize("name", ["num_batched_tokens", "num_logit_rows", "block_size"])
    def test_counts_are_positive(self, name: str) -> None:
        options: dict[str, Any] = {name: 0}
        with pytest.raises(ConfigError, match="must be at least 1"):
            plan_memory(QWEN3_0_6B, 24 * GIB, **options)

    def test_components_add_up_to_the_weights(self) -> None:
        for tied in (True, False):
            config = ModelConfig.from_dict(tiny_config("qwen3", tied=tied))
            parts = parts_of_weights(config, "bfloat16")
            assert sum(parts.values()) == weight_bytes(config, "bfloat16")
            assert ("lm_head" in parts) != tied


class PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes of tensors that were made inside and are alive at the same time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.live:
            self.live.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.live.discard(key)
        self.now -= size


class Elsewhere:
    """An attention whose workspace is not the model's."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.empty_like(q)

    def kv_sink(self, layer: int) -> None:
        return None


ACTIVATION_CONFIGS = {
    "qwen3-0.6b": dataclasses.replace(QWEN3_0_6B, num_layers=2),
    "without qk-norm": dataclasses.replace(
        QWEN3_0_6B, num_layers=2, qk_norm=False, architecture="LlamaForCausalLM"
    ),
    "mha": dataclasses.replace(QWEN3_0_6B, num_layers=2, num_kv_heads=16),
    "tiny qwen2": ModelConfig.from_dict(tiny_config("qwen2") | {"dtype": "bfloat16"}),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("config", ACTIVATION_CONFIGS.values(), ids=ACTIVATION_CONFIGS)
class TestActivationPeak:
    TOKENS = 48

    def test_the_layers_take_what_the_formula_says(self, config: ModelConfig, dtype: str) -> None:
        kind = getattr(torch, dtype)
        model = Transformer(
            config,
            ops=TorchOps(),
            linear=dense_linear_factory(kind, "meta"),
            dtype=kind,
            device="meta",
            max_positions=self.TOKENS,
        )
        ids = torch.zeros(self.TOKENS, dtype=torch.int64, device="meta")
        with torch.inference_mode(), PeakBytes() as seen:
            model(ids, ids, Elsewhere())
        # So many tokens that the logits of one row are the smaller part.
        formula = activation_peak(config, self.TOKENS, 1, dtype)
        assert seen.peak <= formula <= 1.02 * seen.peak

    def test_many_logit_rows_outweigh_the_layers(self, config: ModelConfig, dtype: str) -> None:
        layers = activation_peak(config, 1, 1, dtype)
        rows = activation_peak(config, 1, 1000, dtype)
        assert rows > layers
        size = 2 if dtype == "bfloat16" else 4
        step = activation_peak(config, 1, 1001, dtype) - rows
        assert step == config.vocab_size * (size + 8)
