"""Flags of the command line: every field is one, and nothing wrong gets through."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from common.cli_flags import CLI_DEFAULTS, SAMPLING_HELP, CommandLine, parse_command_line
from common.config import STAGES, options_of
from common.errors import ConfigError, FoloError, InvalidRequestError, UnsupportedOptionError
from common.request import SamplingParams

FIELDS = [item.name for item in dataclasses.fields(SamplingParams)]


def parse(*argv: str, stage: str = "m1_basic") -> CommandLine:
    return parse_command_line(stage, list(argv))


class TestSamplingParams:
    @pytest.mark.parametrize(
        ("argv", "field", "value"),
        [
            (["--n", "3"], "n", 3),
            (["--temperature", "0"], "temperature", 0.0),
            (["--top-k", "40"], "top_k", 40),
            (["--top-k", "-1"], "top_k", -1),
            (["--top-p", "0.5"], "top_p", 0.5),
            (["--min-p", "0.1"], "min_p", 0.1),
            (["--presence-penalty", "-1.5"], "presence_penalty", -1.5),
            (["--frequency-penalty=-2"], "frequency_penalty", -2.0),
            (["--repetition-penalty", "1.3"], "repetition_penalty", 1.3),
            (["--seed", "7"], "seed", 7),
            (["--max-tokens", "1"], "max_tokens", 1),
            (["--min-tokens", "2"], "min_tokens", 2),
            (["--stop", "a", "--stop", "b c"], "stop", ("a", "b c")),
            (["--stop-token-ids", "4", "--stop-token-ids", "5"], "stop_token_ids", (4, 5)),
            (["--ignore-eos"], "ignore_eos", True),
            (["--logprobs", "2", "--json"], "logprobs", 2),
            (["--no-skip-special-tokens"], "skip_special_tokens", False),
            (["--include-stop-str-in-output"], "include_stop_str_in_output", True),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else None,
    )
    def test_a_field_takes_its_flag(self, argv: list[str], field: str, value: Any) -> None:
        expected = dataclasses.replace(parse("hi").params, **{field: value})
        assert parse("hi", *argv).params == expected
        assert getattr(parse(*argv, "hi").params, field) == value

    def test_defaults_are_the_librarys_but_for_a_readable_answer(self) -> None:
        assert parse("hi").params == SamplingParams(**CLI_DEFAULTS)

    def test_every_field_is_explained(self) -> None:
        assert list(SAMPLING_HELP) == FIELDS

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["--max-tokens", "0"], "max_tokens must be an integer of at least 1, got 0"),
            (["--max-tokens", "-3"], "max_tokens must be an integer of at least 1, got -3"),
            (["--temperature", "-0.1"], "temperature must be in [0, inf), got -0.1"),
            (["--temperature", "nan"], "temperature must be in [0, inf), got nan"),
            (["--top-p", "0"], "top_p must be in (0, 1], got 0.0"),
            (["--top-p", "1.1"], "top_p must be in (0, 1], got 1.1"),
            (["--seed", "-1"], "seed must be an integer in [0, "),
            (["--stop", ""], "stop must hold non-empty strings, got ''"),
            (["--n", "2", "--temperature", "0"], "n must be 1 with greedy sampling"),
        ],
        ids=" ".join,
    )
    def test_values_out_of_range(self, argv: list[str], message: str) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            parse("hi", *argv)
        assert message in str(caught.value)


class TestEngineOptions:
    @pytest.mark.parametrize("stage", STAGES[1:])
    def test_every_option_of_a_stage_reaches_its_engine(self, stage: str) -> None:
        options = parse("hi", stage=stage).options
        assert set(options) == {row.name for row in options_of(stage)}
        for row in options_of(stage):
            assert options[row.name] == row.default

    @pytest.mark.parametrize(
        ("argv", "name", "value"),
        [
            (["--model", "some/where"], "model", "some/where"),
            (["--max-model-len", "64"], "max_model_len", 64),
            (["--block-size", "32"], "block_size", 32),
            (["--block-size", "auto"], "block_size", "auto"),
            (["--gpu-memory-utilization", "0.5"], "gpu_memory_utilization", 0.5),
            (["--no-enable-prefix-caching"], "enable_prefix_caching", False),
            (["--enforce-eager"], "enforce_eager", True),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else None,
    )
    def test_an_option_takes_its_flag(self, argv: list[str], name: str, value: Any) -> None:
        assert parse("hi", *argv, stage="m6_prefix").options[name] == value

    def test_a_seed_is_that_of_the_request_and_of_the_engine(self) -> None:
        line = parse("hi", "--seed", "5")
        assert (line.params.seed, line.options["seed"]) == (5, 5)
        line = parse("hi")
        assert (line.params.seed, line.options["seed"]) == (None, 0)

    def test_a_trace_has_a_file(self, tmp_path: Path) -> None:
        assert (parse("hi").trace, parse("hi").options["trace"]) == (None, False)
        line = parse("hi", "--trace", str(tmp_path / "t.json"))
        assert (line.trace, line.options["trace"]) == (tmp_path / "t.json", True)
        for folder in (str(tmp_path), ""):
            with pytest.raises(ConfigError, match="--trace needs a file"):
                parse("hi", "--trace", folder)

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["--dtype", "int3"], "dtype must be one of auto, float32"),
            (["--device", "tpu"], "device must be auto, cpu, cuda"),
            (["--max-model-len", "1"], "max_model_len must be an integer of at least 2"),
            (["--block-size", "x"], "--block-size: must be an integer or auto, got 'x'"),
            (["--num-blocks", "many"], "--num-blocks: invalid int value: 'many'"),
            (["--policy", "lifo"], "policy must be one of fcfs, priority, got 'lifo'"),
            (["--seed"], "--seed: expected one argument"),
        ],
        ids=" ".join,
    )
    def test_wrong_values_are_refused_without_a_model(self, argv: list[str], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            parse("hi", *argv, stage="m3_paged")
        assert message in str(caught.value)


class TestUnknownFlags:
    @pytest.mark.parametrize(
        ("stage", "flag", "message"),
        [
            ("m1_basic", "--block-size", "m1_basic has no option 'block_size': it arrives with m3"),
            ("m1_basic", "--max-num-seqs=4", "'max_num_seqs': it arrives with m2_batching"),
            ("m2_batching", "--use-cache", "'use_cache': it ended with m1_basic"),
            ("m2_batching", "--no-use-cache", "'use_cache': it ended with m1_basic"),
        ],
    )
    def test_a_flag_of_another_stage_names_the_stage(
        self, stage: str, flag: str, message: str
    ) -> None:
        with pytest.raises(UnsupportedOptionError) as caught:
            parse("hi", flag, "3", stage=stage)
        assert message in str(caught.value)

    @pytest.mark.parametrize(
        ("flag", "hint"),
        [
            ("--max-token", "did you mean --max-tokens?"),
            ("--max_tokens", "did you mean --max-tokens?"),
            ("--temprature", "did you mean --temperature?"),
            ("--xyz", "see --help"),
            ("-x", "a prompt that begins with - goes behind --"),
        ],
    )
    def test_a_hint_for_the_others(self, flag: str, hint: str) -> None:
        with pytest.raises(ConfigError) as caught:
            parse("hi", f"{flag}=1")
        assert str(caught.value) == f"unknown flag {flag} ({hint})"

    def test_flags_are_not_abbreviated(self) -> None:
        with pytest.raises(ConfigError, match="unknown flag --temp"):
            parse("hi", "--temp", "0")


class TestPrompts:
    @pytest.mark.parametrize(
        ("argv", "prompts"),
        [
            ([], ()),
            (["one"], ("one",)),
            (["one", "two"], ("one", "two")),
            (["--n", "2", "one"], ("one",)),
            (["one", "--n", "2", "two"], ("one", "two")),
            (["--", "-x is a flag?", "--n"], ("-x is a flag?", "--n")),
            (["one", "--n", "2", "--", "--two", "--", "three"], ("one", "--two", "--", "three")),
            (["-5"], ("-5",)),
        ],
        ids=str,
    )
    def test_prompts_stand_anywhere(self, argv: list[str], prompts: tuple[str, ...]) -> None:
        assert parse(*argv).prompts == prompts

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            ([""], "the prompt is empty"),
            ([" \n"], "the prompt is empty"),
            (["one", ""], "prompt 2 is empty"),
            (["", "--raw"], "the prompt is empty"),
            (["", "--chat"], "the prompt is empty"),
        ],
        ids=str,
    )
    def test_an_empty_prompt_is_refused(self, argv: list[str], message: str) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            parse(*argv)
        assert str(caught.value) == message

    def test_white_space_can_be_continued(self) -> None:
        assert parse("\n", "--raw").prompts == ("\n",)


class TestModes:
    def test_switches(self) -> None:
        line = parse("hi")
        off = (line.chat, line.json, line.raw, line.verbose, line.thinking)
        assert off == (False, False, False, False, True)
        assert parse("--chat").chat
        assert parse("hi", "--json").json
        assert parse("hi", "--raw").raw
        assert parse("hi", "--verbose").verbose
        assert not parse("hi", "--no-thinking").thinking

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["--chat", "--json"], "--chat and --json exclude each other"),
            (["--chat", "--raw"], "--chat and --raw exclude each other"),
            (["--raw", "--no-thinking"], "--raw and --no-thinking exclude each other"),
            (["--logprobs", "0"], "--logprobs are printed with --json only"),
        ],
        ids=" ".join,
    )
    def test_a_flag_without_effect_is_refused(self, argv: list[str], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            parse("hi", *argv)
        assert str(caught.value) == message


@pytest.mark.parametrize("stage", STAGES[1:])
def test_help_lists_every_flag(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help", stage=stage)
    assert caught.value.code == 0
    words = capsys.readouterr().out.split()
    assert words[:4] == ["usage:", "python", "-m", stage]
    for name in {*FIELDS, *(row.name for row in options_of(stage))}:
        flag = "--" + name.replace("_", "-")
        assert flag in words or f"{flag}," in words, flag
    assert "True" not in words
    assert "(default:" in words


def test_every_refusal_is_an_error_of_the_project() -> None:
    for argv in (["--bogus"], ["--n", "x"], ["hi", "--n", "0"], [""]):
        with pytest.raises(FoloError):
            parse(*argv)
