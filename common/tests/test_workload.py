import dataclasses
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from common.request import SamplingParams
from common.workload import (
    Workload,
    WorkloadRequest,
    fixed,
    long_among_short,
    multi_turn_chat,
    random_lengths,
    shared_prefix,
)


class TestNanoVllmBench:
    """The workload that public engines are compared on."""

    def test_has_the_published_token_counts(self) -> None:
        workload = random_lengths()
        assert len(workload.requests) == 256
        assert workload.max_output_tokens == 133_966
        assert workload.prompt_tokens == 142_827

    def test_draws_in_the_order_of_its_script(self) -> None:
        random.seed(0)
        prompts = [
            [random.randint(0, 10000) for _ in range(random.randint(100, 1024))] for _ in range(256)
        ]
        limits = [random.randint(100, 1024) for _ in range(256)]
        workload = random_lengths()
        assert workload.prompts == prompts
        assert [item.max_tokens for item in workload.sampling_params] == limits
        assert {item.temperature for item in workload.sampling_params} == {0.6}
        assert all(item.ignore_eos for item in workload.sampling_params)

    def test_hash_is_pinned(self) -> None:
        # Results on disk carry it: a change here makes them incomparable.
        assert (
            random_lengths().hash
            == "5d5b102385cfac51b6c133f99096dd1f97d192fa0ebcc828314073679c084a4b"
        )


class TestHash:
    def test_depends_on_the_requests_alone(self) -> None:
        workload = fixed(3, 4, 5)
        assert workload.hash == fixed(3, 4, 5).hash
        assert dataclasses.replace(workload, name="other").hash == workload.hash
        assert len(workload.hash) == 64

    def test_changes_with_every_part_of_a_request(self) -> None:
        base = WorkloadRequest((1, 2), SamplingParams(max_tokens=4), 1.0)
        variants = [
            base,
            dataclasses.replace(base, prompt_token_ids=(1, 3)),
            dataclasses.replace(base, prompt_token_ids=(1, 2, 2)),
            dataclasses.replace(base, sampling_params=SamplingParams(max_tokens=5)),
            dataclasses.replace(base, sampling_params=SamplingParams(max_tokens=4, top_k=1)),
            dataclasses.replace(base, arrival=2.0),
        ]
        assert len({Workload("w", 0, (item,)).hash for item in variants}) == len(variants)

    def test_spelling_of_a_number_does_not_count(self) -> None:
        one = WorkloadRequest((1,), SamplingParams(temperature=2, max_tokens=4))
        two = WorkloadRequest((1,), SamplingParams(temperature=2.0, max_tokens=4), 0)
        assert Workload("w", 0, (one,)).hash == Workload("w", 0, (two,)).hash

    @given(st.integers(0, 2**32))
    def test_follows_from_the_seed(self, seed: int) -> None:
        assert fixed(2, 3, 1, seed=seed).hash == fixed(2, 3, 1, seed=seed).hash
        assert fixed(2, 30, 1, seed=seed).hash != fixed(2, 30, 1, seed=seed + 1).hash


class TestSubset:
    def test_names_itself_and_keeps_the_first(self) -> None:
        workload = fixed(5, 3, 2)
        part = workload.subset(2)
        assert part.name == "fixed-5x3+2[:2]"
        assert part.requests == workload.requests[:2]
        assert part.hash != workload.hash
        assert workload.subset(5) is workload

    @pytest.mark.parametrize("count", [0, -1, 6])
    def test_refusals(self, count: int) -> None:
        with pytest.raises(ConfigError, match=r"count must be in \[1, 5\]"):
            fixed(5, 3, 2).subset(count)


class TestShapes:
    def test_fixed(self) -> None:
        workload = fixed(4, 7, 3, temperature=0.5, vocab=11)
        assert {len(prompt) for prompt in workload.prompts} == {7}
        assert workload.max_output_tokens == 12
        assert max(max(prompt) for prompt in workload.prompts) <= 10
        assert len({tuple(prompt) for prompt in workload.prompts}) == 4

    def test_shared_prefix_takes_turns(self) -> None:
        prompts = shared_prefix(4, 6, 2, 1, num_prefixes=2).prompts
        assert prompts[0][:6] == prompts[2][:6]
        assert prompts[1][:6] == prompts[3][:6]
        assert prompts[0][:6] != prompts[1][:6]
        assert prompts[0][6:] != prompts[2][6:]
        assert {len(prompt) for prompt in prompts} == {8}

    def test_every_chat_turn_extends_the_last(self) -> None:
        workload = multi_turn_chat(2, 3, system_len=4, user_len=2, reply_len=3, think_time=1.5)
        prompts = workload.prompts
        for conversation in range(2):
            turns = prompts[conversation::2]
            assert [len(turn) for turn in turns] == [6, 11, 16]
            for earlier, later in itertools.pairwise(turns):
                assert later[: len(earlier)] == earlier
        assert prompts[0][:4] == prompts[1][:4]
        assert prompts[0][4:] != prompts[1][4:]
        assert [item.arrival for item in workload.requests] == [0.0, 0.0, 1.5, 1.5, 3.0, 3.0]

    def test_long_among_short(self) -> None:
        workload = long_among_short(3, 4, 5, num_long=2, long_len=50, first_long=1.0, interval=0.5)
        assert [len(prompt) for prompt in workload.prompts] == [4, 4, 4, 50, 50]
        assert [item.arrival for item in workload.requests] == [0, 0, 0, 1.0, 1.5]
        assert [item.max_tokens for item in workload.sampling_params] == [5, 5, 5, 1, 1]

    def test_poisson_keeps_the_requests_and_its_rate(self) -> None:
        base = fixed(400, 1, 1)
        workload = base.with_poisson_arrivals(8.0)
        assert workload.name == "fixed-400x1+1-poisson-8/s"
        assert workload.prompts == base.prompts
        arrivals = [item.arrival for item in workload.requests]
        assert arrivals[0] == 0.0
        assert arrivals == sorted(arrivals)
        assert 399 / arrivals[-1] == pytest.approx(8.0, rel=0.15)
        assert base.with_poisson_arrivals(8.0, seed=1).hash != workload.hash

    def test_parallel_samples_count_as_output(self) -> None:
        params = SamplingParams(n=3, max_tokens=4)
        assert Workload("w", 0, (WorkloadRequest((1,), params),)).max_output_tokens == 12

    def test_info(self) -> None:
        info = fixed(2, 3, 4, seed=9).info
        assert (info.name, info.seed) == ("fixed-2x3+4", 9)
        assert (info.num_requests, info.prompt_tokens, info.max_output_tokens) == (2, 6, 8)


class TestRefusals:
    def test_empty(self) -> None:
        with pytest.raises(ConfigError, match="has no request"):
            fixed(0, 3, 4)
        with pytest.raises(ConfigError, match="at least one token"):
            fixed(1, 0, 4)

    def test_order(self) -> None:
        late, early = (WorkloadRequest((1,), SamplingParams(), at) for at in (2.0, 1.0))
        with pytest.raises(ConfigError, match="not in order of arrival"):
            Workload("w", 0, (late, early))

    def test_rate(self) -> None:
        with pytest.raises(ConfigError, match="rate must be positive, got 0"):
            fixed(1, 1, 1).with_poisson_arrivals(0)
