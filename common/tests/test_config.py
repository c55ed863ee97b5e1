"""Engine options: defaults, ranges, the option table, and which stage has which."""

from typing import Any

import pytest

from common.config import (
    STAGES,
    CacheConfig,
    EngineConfig,
    SchedulerConfig,
    all_options,
    options_of,
    refuse_unknown_options,
)
from common.errors import ConfigError, UnsupportedOptionError

# option -> (first stage, last stage or None), as the design has it
WHERE = {
    "model": ("m0_init", None),
    "dtype": ("m0_init", None),
    "device": ("m0_init", None),
    "max_model_len": ("m1_basic", None),
    "use_cache": ("m1_basic", "m1_basic"),
    "seed": ("m1_basic", None),
    "trace": ("m1_basic", None),
    "max_num_seqs": ("m2_batching", None),
    "max_num_batched_tokens": ("m2_batching", None),
    "gpu_memory_utilization": ("m2_batching", None),
    "policy": ("m2_batching", None),
    "block_size": ("m3_paged", None),
    "num_blocks": ("m3_paged", None),
    "attention_backend": ("m4_flash", None),
    "linear_backend": ("m4_flash", None),
    "programmatic_launch": ("m4_flash", None),
    "head_bits": ("m7_gptq", None),
    "enforce_eager": ("m4_flash", None),
    "overlap": ("m5_chunked", None),
    "long_prefill_token_threshold": ("m5_chunked", None),
    "enable_prefix_caching": ("m6_prefix", None),
    "prefix_index": ("m6_prefix", None),
    "max_cached_blocks": ("m6_prefix", None),
}


class TestOptionTable:
    def test_every_option_and_where_it_lives(self) -> None:
        assert {row.name: (row.since, row.until) for row in all_options()} == WHERE

    @pytest.mark.parametrize("stage", STAGES)
    def test_a_stage_has_what_arrived_and_has_not_ended(self, stage: str) -> None:
        at = STAGES.index(stage)
        expected = {
            name
            for name, (since, until) in WHERE.items()
            if STAGES.index(since) <= at and (until is None or at <= STAGES.index(until))
        }
        assert {row.name for row in options_of(stage)} == expected

    def test_types_choices_and_defaults(self) -> None:
        rows = {row.name: row for row in all_options()}
        assert rows["block_size"].value_type is int
        assert rows["block_size"].choices == ("auto",)
        assert rows["block_size"].default == "auto"
        assert rows["dtype"].value_type is str
        assert rows["dtype"].choices == ("auto", "float32", "bfloat16", "float16")
        assert rows["policy"].choices == ("fcfs", "priority")
        assert rows["gpu_memory_utilization"].value_type is float
        assert rows["enforce_eager"].value_type is bool
        assert (rows["num_blocks"].value_type, rows["num_blocks"].optional) == (int, True)
        assert not rows["seed"].optional

    def test_every_option_is_explained_in_one_line(self) -> None:
        for row in all_options():
            assert row.help, row.name
            assert "\n" not in row.help

    def test_defaults_of_the_table_are_those_of_the_dataclasses(self) -> None:
        config = EngineConfig()
        for row in all_options():
            owner = next(
                part for part in (config, config.cache, config.scheduler) if hasattr(part, row.name)
            )
            assert getattr(owner, row.name) == row.default


class TestFromOptions:
    def test_flat_options_reach_their_owners(self) -> None:
        config = EngineConfig.from_options(
            "m7_gptq",
            {"model": "x", "block_size": 32, "num_blocks": 7, "max_num_seqs": 3, "seed": 9},
        )
        assert config.model == "x"
        assert config.seed == 9
        assert (config.cache.block_size, config.cache.num_blocks) == (32, 7)
        assert config.scheduler.max_num_seqs == 3
        assert config.scheduler.max_num_batched_tokens == 8192

    def test_no_options_gives_the_defaults(self) -> None:
        assert EngineConfig.from_options("m1_basic", {}) == EngineConfig()

    @pytest.mark.parametrize(
        "stage, name, message",
        [
            ("m1_basic", "block_size", "has no option 'block_size': it arrives with m3_paged"),
            ("m0_init", "seed", "has no option 'seed': it arrives with m1_basic"),
            ("m2_batching", "use_cache", "has no option 'use_cache': it ended with m1_basic"),
            ("m0_init", "turbo", "m0_init has no option 'turbo'; it has: device, dtype, model"),
            ("m1_basic", "cache", "m1_basic has no option 'cache'; it has: "),
        ],
    )
    def test_an_option_of_another_stage_is_refused_by_name(
        self, stage: str, name: str, message: str
    ) -> None:
        with pytest.raises(UnsupportedOptionError, match=message):
            EngineConfig.from_options(stage, {name: 1})
        with pytest.raises(UnsupportedOptionError, match=message):
            refuse_unknown_options(stage, {name: 1})


class TestRanges:
    @pytest.mark.parametrize(
        "options",
        [
            {"dtype": "float16"},
            {"device": "cuda:12"},
            {"max_model_len": 2},
            {"seed": 2**63 - 1},
            {"gpu_memory_utilization": 1.0},
            {"gpu_memory_utilization": 1e-9},
            {"block_size": 1},
            {"block_size": "auto"},
            {"num_blocks": 1},
            {"max_num_seqs": 1},
            {"max_num_batched_tokens": 1},
            {"long_prefill_token_threshold": 0},
            {"policy": "priority"},
        ],
    )
    def test_edges_that_are_accepted(self, options: dict[str, Any]) -> None:
        [(name, value)] = options.items()
        config = EngineConfig.from_options("m6_prefix", options)
        parts = (config, config.cache, config.scheduler)
        assert [getattr(part, name) for part in parts if hasattr(part, name)] == [value]

    @pytest.mark.parametrize(
        "options, message",
        [
            ({"model": ""}, "model must be a non-empty string, got ''"),
            (
                {"dtype": "int8"},
                "dtype must be one of auto, float32, bfloat16, float16, got 'int8'",
            ),
            ({"device": "tpu"}, "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
            ({"device": "cuda:"}, "device must be .* got 'cuda:'"),
            ({"device": "cuda:-1"}, "device must be .* got 'cuda:-1'"),
            ({"max_model_len": 1}, "max_model_len must be an integer of at least 2, got 1"),
            ({"max_model_len": 8.0}, r"max_model_len must be .* got 8\.0"),
            ({"seed": -1}, r"seed must be in \[0, 2\*\*63\), got -1"),
            ({"seed": 2**63}, "seed must be in"),
            ({"seed": True}, "seed must be an integer, got True"),
            ({"gpu_memory_utilization": 0.0}, r"gpu_memory_utilization must be in \(0, 1\]"),
            ({"gpu_memory_utilization": 1.01}, r"must be in \(0, 1\], got 1\.01"),
            ({"gpu_memory_utilization": float("nan")}, r"must be in \(0, 1\], got nan"),
            ({"block_size": 0}, "block_size must be an integer of at least 1, got 0"),
            ({"block_size": "big"}, "block_size must be an integer of at least 1, got 'big'"),
            ({"num_blocks": 0}, "num_blocks must be an integer of at least 1, got 0"),
            ({"num_blocks": True}, "num_blocks must be .* got True"),
            ({"max_num_seqs": 0}, "max_num_seqs must be an integer of at least 1, got 0"),
            ({"max_num_batched_tokens": 0}, "max_num_batched_tokens must be .* got 0"),
            ({"long_prefill_token_threshold": -1}, "long_prefill_token_threshold must be .* -1"),
            ({"device": 0}, "device must be auto, .* got 0"),
            ({"gpu_memory_utilization": "x"}, r"must be in \(0, 1\], got 'x'"),
            ({"gpu_memory_utilization": True}, r"must be in \(0, 1\], got True"),
            ({"trace": 1}, "trace must be True or False, got 1"),
            ({"enforce_eager": "no"}, "enforce_eager must be True or False, got 'no'"),
            ({"enable_prefix_caching": None}, "enable_prefix_caching must be True or False"),
            ({"prefix_index": "radix"}, "prefix_index must be one of hash, tree, got 'radix'"),
            ({"max_cached_blocks": -1}, "max_cached_blocks must be an integer of at least 0"),
            ({"linear_backend": "x"}, "linear_backend must be one of auto, torch, got 'x'"),
            (
                {"linear_backend": "auto_gptq"},
                "m6_prefix has no linear_backend 'auto_gptq': it arrives with m7_gptq",
            ),
            ({"overlap": "yes"}, "overlap must be True or False, got 'yes'"),
            ({"attention_backend": 3}, "attention_backend must be a name, got 3"),
            ({"policy": "lifo"}, "policy must be one of fcfs, priority, got 'lifo'"),
        ],
    )
    def test_values_that_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            EngineConfig.from_options("m6_prefix", options)

    def test_parts_check_themselves(self) -> None:
        with pytest.raises(ConfigError, match="num_blocks"):
            CacheConfig(num_blocks=-3)
        with pytest.raises(ConfigError, match="max_num_seqs"):
            SchedulerConfig(max_num_seqs=0)
