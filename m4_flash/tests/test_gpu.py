"""M4 on a real GPU: backends that agree, graphs that equal eager steps, ids that equal the CPU's.

Every test skips itself elsewhere.
"""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from common.outputs import RequestOutput
from common.request import SamplingParams
from common.testing.conformance import GREEDY, build, ids_of
from common.testing.fixtures import FAMILIES, NEW_TOKENS, TinyModel
from m4_flash.backends.base import AttentionBackend, AttentionShape
from m4_flash.backends.select import BACKENDS, select_backend
from m4_flash.cuda_graph import Bucket, Buckets, CudaCapture
from m4_flash.input_batch import InputBatch
from m4_flash.staging import FIRST_SIZE, Staging
from m4_flash.tests.step_cases import LAYER, step_case

pytestmark = pytest.mark.gpu

MIXED = [(1, 1), (1, 700), (1, 256), (1, 257), (300, 300), (17, 529), (64, 1024)]
# One rounding of the output, and of the weights before the second product.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def make(model: TinyModel, **options: Any) -> Any:
    return build("m4_flash", model, **{"device": "cuda", "num_blocks": 64, **options})


def reference(model: TinyModel) -> list[list[tuple[int, ...]]]:
    return [[tuple(model.oracle.greedy(prompt, NEW_TOKENS))] for prompt in model.prompts]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block_size", [16, 32, 256])
@pytest.mark.parametrize(("head_dim", "group"), [(64, 3), (128, 1), (128, 2), (128, 8)])
@pytest.mark.parametrize("name", list(BACKENDS))
def test_backends_agree(
    name: str, head_dim: int, group: int, block_size: int, dtype: torch.dtype
) -> None:
    """Every backend against the float32 reference, with lengths on the host and without."""
    case = step_case(
        MIXED, group=group, head_dim=head_dim, block_size=block_size, dtype=dtype, device="cuda"
    )
    backend = BACKENDS[name]
    reason = backend.refusal(case.shape)
    if reason is not None:
        pytest.skip(reason)
    bound = TOLERANCE[dtype]
    attention = backend(case.cache, case.shape)
    out = attention.forward(LAYER, case.q, case.k, case.v, case.metadata)
    torch.testing.assert_close(out.cpu().float(), case.expected, rtol=bound, atol=bound)
    if backend.capturable:
        check_padded(backend, head_dim, group, block_size, dtype)


def check_padded(
    backend: type[AttentionBackend], head_dim: int, group: int, block_size: int, dtype: torch.dtype
) -> None:
    """As in a captured graph: padding at the end and no lengths on the host."""
    import dataclasses

    bound = TOLERANCE[dtype]
    for slices in (MIXED, [(1, 5), (1, 700), (1, 256)]):
        case = step_case(
            slices, group=group, head_dim=head_dim, block_size=block_size, dtype=dtype,
            device="cuda", pad_tokens=3, pad_seqs=3,
        )  # fmt: skip
        metadata = dataclasses.replace(case.metadata, host=None)
        out = backend(case.cache, case.shape).forward(LAYER, case.q, case.k, case.v, metadata)
        real = out[: len(case.expected)].cpu().float()
        torch.testing.assert_close(real, case.expected, rtol=bound, atol=bound)


def test_picks_triton(tiny: TinyModel) -> None:
    shape = AttentionShape(torch.device("cuda"), torch.bfloat16, 16, 8, 128)
    assert select_backend("auto", shape).name == "triton"
    odd = AttentionShape(torch.device("cuda"), torch.float32, 16, 8, 80)
    assert select_backend("auto", odd).name == "sdpa"
    engine = make(tiny)
    assert engine.runner.backend.name == "triton"
    assert type(engine.model.layers[0].mlp.ops).__name__ == "TritonOps"


@pytest.mark.parametrize("options", [{}, {"enforce_eager": True}, {"attention_backend": "sdpa"}])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_ids_equal_those_of_the_cpu(
    tiny_models: dict[str, TinyModel], family: str, options: dict[str, Any]
) -> None:
    """In float32; blocks of NaN until they are written; graphs, eager, and the fallback."""
    model = tiny_models[family]
    engine = make(model, trace=True, **options)
    engine.runner.cache.kv.fill_(float("nan"))
    assert ids_of(engine.generate(model.prompts, GREEDY)) == reference(model)
    engine.trace.validate()


def test_a_pool_that_preempts(tiny: TinyModel) -> None:
    engine = make(tiny, num_blocks=9, trace=True)
    assert ids_of(engine.generate(tiny.prompts, GREEDY)) == reference(tiny)
    assert engine.scheduler.num_preemptions > 0
    engine.scheduler.manager.check()


def test_graphs_equal_eager(tiny: TinyModel) -> None:
    """Seeded, filtered and penalised rows beside greedy ones, in buckets and without."""
    params = [
        GREEDY,
        SamplingParams(seed=3, max_tokens=20, temperature=0.8, top_p=0.9),
        SamplingParams(seed=1, max_tokens=12, n=3, frequency_penalty=0.5),
        SamplingParams(temperature=0, max_tokens=9, repetition_penalty=1.3, logprobs=2),
    ]
    graphs, eager = make(tiny), make(tiny, enforce_eager=True)
    assert graphs.runner.graphs is not None
    ours, theirs = (engine.generate(tiny.prompts, params) for engine in (graphs, eager))
    assert ids_of(ours) == ids_of(theirs)
    alone = [graphs.generate(p, s)[0] for p, s in zip(tiny.prompts, params, strict=True)]
    assert ids_of(alone) == ids_of(ours)  # a seed gives the same ids in any batch


def test_a_seed_survives_preemption(tiny: TinyModel) -> None:
    params = [SamplingParams(seed=seed, max_tokens=40, ignore_eos=True) for seed in range(4)]
    roomy, tight = make(tiny), make(tiny, num_blocks=8)
    assert ids_of(roomy.generate(tiny.prompts, params)) == ids_of(
        tight.generate(tiny.prompts, params)
    )
    assert tight.scheduler.num_preemptions > 0


@pytest.mark.parametrize("seats", [1, 3, 20])
def test_every_batch_size_has_a_graph(tiny: TinyModel, seats: int) -> None:
    engine = make(tiny, max_num_seqs=seats, trace=True)
    prompts = [tiny.prompts[1]] * seats
    outputs = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
    expected = tuple(tiny.oracle.greedy(tiny.prompts[1], 4))
    assert ids_of(outputs) == [[expected]] * seats


def test_buckets_that_overlap_in_memory(tiny: TinyModel) -> None:
    """Graphs share one pool: a large replay between two small ones changes nothing."""
    engine = make(tiny, max_num_seqs=8)
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    engine.add_request(tiny.prompts[1], params)
    for _ in range(5):
        engine.step()
    late = [engine.add_request(prompt, params) for prompt in tiny.prompts[1:] * 2]
    done = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                done[output.request_id] = output
    assert len(done) == 1 + len(late)
    for output in done.values():
        prompt = list(output.prompt_token_ids)
        assert list(output.outputs[0].token_ids) == tiny.oracle.greedy(prompt, 30)


def test_capturing_leaves_the_cache_alone(tiny: TinyModel) -> None:
    engine = make(tiny, enforce_eager=True, max_num_seqs=4)
    engine.runner.cache.kv.fill_(float("nan"))
    engine.runner.record_graphs(Buckets(4), CudaCapture(engine.device))
    torch.cuda.synchronize()
    assert engine.runner.cache.kv.isnan().all()
    assert engine.runner.graphs.find(3, 3) == Bucket(4, 4)


def test_staging() -> None:
    """More sends than buffers, growing, without waiting in between: everything arrives."""
    staging = Staging(torch.device("cuda"))
    sent = []
    for turn in range(8):
        numbers = list(range(turn, turn + FIRST_SIZE * (turn + 1) // 2))
        sent.append((numbers, staging.send((numbers, [turn]), ([turn / 8],))))
    for turn, (numbers, arrived) in enumerate(sent):
        assert arrived.integers[0].tolist() == numbers
        assert arrived.integers[1].tolist() == [turn]
        assert arrived.floats[0].tolist() == [turn / 8]


@pytest.mark.parametrize("pad", [0, 3])
def test_expand_equals_the_reference(pad: int) -> None:
    """The step's tensors in one launch against PyTorch's, after real and padded sequences."""
    batches = [
        InputBatch(8, 64, 4, torch.device("cuda"), use_kernel=use_kernel)
        for use_kernel in (False, True)
    ]
    steps = []
    for batch in batches:
        batch.sampling.token_ids.copy_(torch.arange(9 * 65).view(9, 65))
        batch.block_tables.copy_(torch.arange(8 * 16).view(8, 16))
        header = [[5, 2, 7], [9, 0, 30], [1, 4, 11], [1, 0, 1]]
        batch.header[:, :3] = torch.tensor(header)
        batch.header[:, 3 : 3 + pad] = 0
        step = batch.expand(16 + pad, 3 + pad, max_query_len=16, host=None)
        batch.append(step, torch.arange(900, 903 + pad, device="cuda"))
        steps.append(step)
    reference, ours = steps
    for name in ("positions", "last", "rows", "draws"):
        assert getattr(ours, name).equal(getattr(reference, name)), name
    assert ours.token_ids[:16].equal(reference.token_ids[:16])
    for name in ("slot_mapping", "cu_seqlens_q", "seq_lens", "block_tables"):
        assert getattr(ours.attention, name).equal(getattr(reference.attention, name)), name
    known = [batch.sampling.token_ids[:8] for batch in batches]
    assert known[0].equal(known[1])


def test_bfloat16_is_as_near_to_float32_as_the_reference_is(tiny: TinyModel) -> None:
    """The format costs these models up to 0.2 in a logprob; the kernels may not cost more."""

    def worst(device: str) -> float:
        params = SamplingParams(temperature=0, max_tokens=1, logprobs=5)
        exact, rounded = (
            make(tiny, dtype=dtype, device=device).generate(tiny.prompts, params)
            for dtype in ("float32", "bfloat16")
        )
        pairs = zip(map(first_logprobs, exact), map(first_logprobs, rounded), strict=True)
        return max(abs(a[token] - b[token]) for a, b in pairs for token in a.keys() & b.keys())

    assert worst("cuda") < 1.5 * worst("cpu")


def first_logprobs(output: RequestOutput) -> dict[int, float]:
    entries = output.outputs[0].logprobs
    assert entries is not None
    return {token: entry.logprob for token, entry in entries[0].items()}


def test_an_engine_gives_its_memory_back(tiny: TinyModel) -> None:
    make(tiny).generate(tiny.prompts, GREEDY)
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    engine = make(tiny)
    engine.generate(tiny.prompts, GREEDY)
    del engine
    gc.collect()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + 2**20


def test_nothing_compiles_while_requests_run(tiny: TinyModel) -> None:
    """Whatever the mix of lengths, every kernel was made when the engine was."""
    import triton

    compiled: list[str] = []
    engine = make(tiny, num_blocks=512, max_num_seqs=40, max_model_len=512)
    hook = triton.knobs.runtime.jit_cache_hook
    triton.knobs.runtime.jit_cache_hook = lambda *_, **given: compiled.append(given["repr"])
    try:
        prompts = [[(5 * i + k) % 256 for k in range(1 + 37 * i % 300)] for i in range(40)]
        params = [SamplingParams(temperature=i % 2, max_tokens=3 + i) for i in range(40)]
        engine.generate(prompts, params)
    finally:
        triton.knobs.runtime.jit_cache_hook = hook
    assert compiled == []
