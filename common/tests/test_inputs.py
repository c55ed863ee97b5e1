"""From prompts of every form to checked requests."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidRequestError
from common.inputs import InputProcessor, params_list, prompt_list
from common.model_config import ModelConfig
from common.request import SamplingParams
from common.testing.byte_tokenizer import write_byte_tokenizer
from common.testing.checkpoints import tiny_config
from common.testing.strategies import prompt_token_ids, sampling_params
from common.tokenizer import Tokenizer

CONFIG = ModelConfig.from_dict(tiny_config("qwen3"))  # 320 ids, 512 positions
PARAMS = SamplingParams()
CHAT = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = write_byte_tokenizer(tmp_path_factory.mktemp("bytes"), 320)
    return Tokenizer.from_pretrained(folder)


@pytest.fixture
def processor(tokenizer: Tokenizer) -> InputProcessor:
    return InputProcessor(CONFIG, tokenizer, 16)


@pytest.fixture
def ids_only() -> InputProcessor:
    return InputProcessor(CONFIG, None, 16)


class TestForms:
    def test_text(self, processor: InputProcessor) -> None:
        request = processor.make_request("AB", PARAMS)
        assert request.prompt_token_ids == (65, 66)
        assert request.prompt == "AB"
        assert request.sampling_params is PARAMS

    def test_ids(self, processor: InputProcessor) -> None:
        request = processor.make_request([0, 319], PARAMS)
        assert request.prompt_token_ids == (0, 319)
        assert request.prompt is None

    @pytest.mark.parametrize("prompt", [(1, 2), range(1, 3)])
    def test_any_sequence_of_ids(self, processor: InputProcessor, prompt: Any) -> None:
        assert processor.make_request(prompt, PARAMS).prompt_token_ids == (1, 2)

    def test_chat(self, tokenizer: Tokenizer) -> None:
        processor = InputProcessor(CONFIG, tokenizer, 100)
        request = processor.make_request(CHAT, PARAMS)
        assert request.prompt_token_ids == tuple(tokenizer.apply_chat_template(CHAT))
        assert request.prompt is None

    def test_template_options_are_passed_on(self, tokenizer: Tokenizer) -> None:
        processor = InputProcessor(CONFIG, tokenizer, 100)
        with pytest.raises(InvalidRequestError, match="no option 'enable_thinking'"):
            processor.make_request(CHAT, PARAMS, chat_template_kwargs={"enable_thinking": False})

    def test_ids_count_up_and_arrivals_are_in_order(self, processor: InputProcessor) -> None:
        first = processor.make_request([1], PARAMS)
        with pytest.raises(InvalidRequestError):
            processor.make_request([], PARAMS)
        second = processor.make_request([1], PARAMS, priority=-2)
        assert (first.request_id, second.request_id) == ("0", "1")
        assert first.arrival_time <= second.arrival_time
        assert (first.priority, second.priority) == (0, -2)


class TestRefusals:
    @pytest.mark.parametrize("prompt", ["", [], ()])
    def test_empty(self, processor: InputProcessor, prompt: Any) -> None:
        with pytest.raises(InvalidRequestError, match="the prompt is empty"):
            processor.make_request(prompt, PARAMS)

    @pytest.mark.parametrize("token", [-1, 320, 10**12])
    def test_ids_outside_the_vocabulary(self, processor: InputProcessor, token: int) -> None:
        message = f"prompt holds token id {token}, outside the vocabulary [0, 320)"
        with pytest.raises(InvalidRequestError, match=re.escape(message)):
            processor.make_request([1, token], PARAMS)

    def test_stop_ids_outside_the_vocabulary(self, processor: InputProcessor) -> None:
        params = SamplingParams(stop_token_ids=(319, 320))
        with pytest.raises(InvalidRequestError, match="stop_token_ids holds token id 320"):
            processor.make_request([1], params)
        kept = SamplingParams(stop_token_ids=(319,))
        assert processor.make_request([1], kept).sampling_params == kept

    def test_length_leaves_room_for_one_token(self, processor: InputProcessor) -> None:
        assert len(processor.make_request([1] * 15, PARAMS).prompt_token_ids) == 15
        with pytest.raises(InvalidRequestError, match=r"has 16 tokens.*max_model_len \(16\)"):
            processor.make_request([1] * 16, PARAMS)

    @pytest.mark.parametrize("item", ["a", 1.0, True, None, [1]])
    def test_what_is_neither_ids_nor_messages(self, processor: InputProcessor, item: Any) -> None:
        with pytest.raises(InvalidRequestError, match=re.escape(f"it holds {item!r}")):
            processor.make_request([1, item], PARAMS)

    def test_messages_and_ids_do_not_mix(self, processor: InputProcessor) -> None:
        with pytest.raises(InvalidRequestError, match="it holds"):
            processor.make_request([CHAT[0], 1], PARAMS)  # type: ignore[arg-type]

    @pytest.mark.parametrize("prompt", ["text", CHAT])
    def test_no_tokenizer(self, ids_only: InputProcessor, prompt: Any) -> None:
        with pytest.raises(InvalidRequestError, match="this model has no tokenizer"):
            ids_only.make_request(prompt, PARAMS)

    def test_stop_strings_need_a_tokenizer(self, ids_only: InputProcessor) -> None:
        assert ids_only.make_request([1], PARAMS).prompt_token_ids == (1,)
        with pytest.raises(InvalidRequestError, match="stop strings need a tokenizer"):
            ids_only.make_request([1], SamplingParams(stop="x"))


@given(ids=prompt_token_ids(max_size=15), params=sampling_params(text=False))
def test_any_prompt_of_the_vocabulary_that_fits_is_accepted(
    ids: list[int], params: SamplingParams
) -> None:
    request = InputProcessor(CONFIG, None, 16).make_request(ids, params)
    assert list(request.prompt_token_ids) == ids


class TestPromptList:
    @pytest.mark.parametrize(
        "given_prompts, expected",
        [
            ("text", ["text"]),
            ("", [""]),
            ([1, 2, 3], [[1, 2, 3]]),
            ((1, 2), [[1, 2]]),
            (CHAT, [CHAT]),
            (["a", "b"], ["a", "b"]),
            ([[1], [2, 3]], [[1], [2, 3]]),
            ([CHAT, CHAT], [CHAT, CHAT]),
            (["a", [1]], ["a", [1]]),
            ([[]], [[]]),
            ([], []),
        ],
    )
    def test_one_or_many(self, given_prompts: Any, expected: Any) -> None:
        assert prompt_list(given_prompts) == expected

    @given(st.lists(prompt_token_ids(), min_size=1))
    def test_many_stay_many(self, prompts: list[list[int]]) -> None:
        assert prompt_list(prompts) == prompts


class TestParamsList:
    def test_one_for_all(self) -> None:
        params = SamplingParams(seed=1)
        assert params_list(params, 3) == [params] * 3

    def test_defaults(self) -> None:
        assert params_list(None, 2) == [SamplingParams()] * 2

    def test_one_each(self) -> None:
        each = [SamplingParams(seed=i) for i in range(3)]
        assert params_list(tuple(each), 3) == each

    @pytest.mark.parametrize("count", [0, 2, 4])
    def test_wrong_number(self, count: int) -> None:
        with pytest.raises(InvalidRequestError, match=f"3 sampling_params for {count} prompts"):
            params_list([SamplingParams()] * 3, count)
