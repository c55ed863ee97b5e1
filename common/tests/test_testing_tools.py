"""The tools that other tests stand on: tiny checkpoints, the oracle, prompts with a margin."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from common.model_config import ModelConfig
from common.testing.checkpoints import Family, tiny_config, write_checkpoint
from common.testing.oracle import HFOracle, margin_prompts
from common.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config("qwen3", layers=2, tied=False)
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), config, seed=3, tokenizer=True)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> HFOracle:
    return HFOracle(folder)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


class TestCheckpoints:
    def test_config_is_transformers_own(self, folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text())
        assert raw["transformers_version"]
        assert raw["rope_parameters"]["rope_theta"] == 10_000.0
        config = ModelConfig.from_pretrained(folder)
        assert (config.num_layers, config.head_dim, config.dtype) == (2, 32, "float32")

    def test_the_same_seed_gives_the_same_weights(self, tmp_path: Path) -> None:
        config = tiny_config("llama", layers=1)
        one, same, other = (
            stored(write_checkpoint(tmp_path / str(i), config, seed=seed))
            for i, seed in enumerate((1, 1, 2))
        )
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert not any(torch.equal(one[name], other[name]) for name in one)

    def test_no_parameter_is_left_at_a_neutral_value(self, tmp_path: Path) -> None:
        config = tiny_config("llama", layers=1, qkv_bias=True, mlp_bias=True, tied=False)
        tensors = stored(write_checkpoint(tmp_path, config))
        assert sum(name.endswith(".bias") for name in tensors) == 7
        for name, tensor in tensors.items():
            assert tensor.std() > 0.05, name

    @pytest.mark.parametrize("shards", [2, 3])
    def test_shards(self, tmp_path: Path, shards: int) -> None:
        write_checkpoint(tmp_path, tiny_config("qwen2", tied=False), shards=shards)
        assert len(list(tmp_path.glob("*.safetensors"))) == shards
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(stored(tmp_path))

    def test_tied_checkpoints_store_the_matrix_once(self, tmp_path: Path) -> None:
        for tied in (True, False):
            path = write_checkpoint(tmp_path / str(tied), tiny_config("qwen3", tied=tied))
            assert ("lm_head.weight" in stored(path)) != tied

    def test_dtype(self, tmp_path: Path) -> None:
        path = write_checkpoint(tmp_path, tiny_config("llama", layers=1), dtype="bfloat16")
        assert {t.dtype for t in stored(path).values()} == {torch.bfloat16}
        assert ModelConfig.from_pretrained(path).dtype == "bfloat16"

    def test_qwen2_cannot_choose_its_head_dim(self) -> None:
        with pytest.raises(ValueError, match="qwen2 has head_dim 16"):
            tiny_config("qwen2", head_dim=32)

    def test_extra_keys_are_copied(self, tmp_path: Path) -> None:
        scaling = {"rope_type": "linear", "factor": 2.0}
        config = tiny_config("llama", layers=1, rope_scaling=scaling)
        write_checkpoint(tmp_path, config)
        assert scaling == config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
        assert ModelConfig.from_pretrained(tmp_path).rope.factor == 2.0

    def test_the_byte_tokenizer_covers_the_vocabulary(self, folder: Path) -> None:
        tokenizer = Tokenizer.from_pretrained(folder)
        assert tokenizer.vocab_size == 320
        assert tokenizer.encode("Az") == [65, 122]


class TestOracle:
    PROMPT = (5, 6, 7, 8)

    def test_states_before_the_final_norm(self, oracle: HFOracle) -> None:
        states = oracle.hidden_states(self.PROMPT)
        assert [tuple(h.shape) for h in states.hidden] == [(4, 64)] * 3
        assert tuple(states.logits.shape) == (4, 320)
        normed = oracle.model.model.norm(states.hidden[-1])
        torch.testing.assert_close(oracle.model.lm_head(normed), states.logits)

    def test_greedy_is_the_argmax_of_the_logits(self, oracle: HFOracle) -> None:
        ids = list(self.PROMPT)
        for token in oracle.greedy(self.PROMPT, 5):
            assert token == int(oracle.hidden_states(ids).logits[-1].argmax())
            ids.append(token)
        assert len(ids) == 9

    def test_the_random_text_is_diverse(self, oracle: HFOracle) -> None:
        assert len(set(oracle.greedy(self.PROMPT, 64))) > 16

    def test_eos_ends_the_text_where_asked(self, oracle: HFOracle) -> None:
        ids = oracle.greedy(self.PROMPT, 8)
        cut = ids.index(ids[3]) + 1
        assert oracle.greedy(self.PROMPT, 8, eos=[ids[3]]) == ids[:cut]

    def test_sampling_is_a_draw_from_the_full_softmax(self, oracle: HFOracle) -> None:
        ids, drawn = list(self.PROMPT), []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            for _ in range(6):
                p = oracle.hidden_states(ids).logits[-1].softmax(-1)
                drawn.append(int(torch.multinomial(p, 1)))
                ids.append(drawn[-1])
        assert oracle.sample(self.PROMPT, 6, 11) == drawn

    @pytest.mark.parametrize(
        "options",
        [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-4}],
    )
    def test_every_filter_can_leave_only_the_best(
        self, oracle: HFOracle, options: dict[str, Any]
    ) -> None:
        greedy = oracle.greedy(self.PROMPT, 6)
        assert oracle.sample(self.PROMPT, 6, 1, **options) == greedy
        assert oracle.sample(self.PROMPT, 6, 1) != greedy

    def test_sampling_leaves_the_global_generator_alone(self, oracle: HFOracle) -> None:
        state = torch.random.get_rng_state()
        oracle.sample(self.PROMPT, 2, 5)
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_both_attentions_agree(self, folder: Path, oracle: HFOracle) -> None:
        other = HFOracle(folder, attention="sdpa").hidden_states(self.PROMPT)
        mine = oracle.hidden_states(self.PROMPT)
        torch.testing.assert_close(other.logits, mine.logits, rtol=1e-4, atol=1e-4)

    def test_margins_are_the_lead_of_the_best_logit(self, oracle: HFOracle) -> None:
        ids, leads = list(self.PROMPT), []
        for token in oracle.greedy(self.PROMPT, 4):
            first, second = oracle.hidden_states(ids).logits[-1].topk(2).values
            leads.append(float(first - second))
            ids.append(token)
        assert oracle.min_margin(self.PROMPT, 4) == pytest.approx(min(leads), abs=1e-4)


class TestMarginPrompts:
    def test_lengths_range_and_margin(self, oracle: HFOracle) -> None:
        prompts = margin_prompts(oracle, 3, [1, 9], 16, vocab=256, seed=2)
        assert [len(prompt) for prompt in prompts] == [1, 9, 1]
        assert all(0 <= token < 256 for prompt in prompts for token in prompt)
        assert all(oracle.min_margin(prompt, 16) >= 1e-3 for prompt in prompts)
        assert prompts == margin_prompts(oracle, 3, [1, 9], 16, vocab=256, seed=2)
        assert prompts != margin_prompts(oracle, 3, [1, 9], 16, vocab=256, seed=3)

    def test_an_impossible_margin_is_an_error(self, oracle: HFOracle) -> None:
        with pytest.raises(ValueError, match="no prompt of 4 tokens keeps a margin of 1000"):
            margin_prompts(oracle, 1, [4], 2, vocab=256, min_margin=1000)


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
def test_every_family_can_be_written_and_run(tmp_path: Path, family: Family) -> None:
    path = write_checkpoint(tmp_path, tiny_config(family, layers=1))
    assert len(HFOracle(path).greedy([1, 2], 3)) == 3
