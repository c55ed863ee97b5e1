"""What only a GPU can show: its memory, loading onto it, and the activation peak."""

from pathlib import Path

import pytest
import torch

from common.errors import OutOfMemoryError
from common.model.linear import dense_linear_factory
from common.model.ops import TorchOps
from common.model.transformer import Transformer
from common.qwen3 import QWEN3_0_6B
from common.testing.checkpoints import tiny_config, write_checkpoint
from common.testing.oracle import HFOracle, margin_prompts
from m0_init.device_memory import device_memory
from m0_init.forward import greedy
from m0_init.loader import load
from m0_init.memory_plan import activation_peak
from m0_init.report import make_report

pytestmark = pytest.mark.gpu


def test_device_memory() -> None:
    memory = device_memory("cuda")
    assert 0 < memory.free_bytes <= memory.total_bytes
    assert memory.total_bytes == torch.cuda.mem_get_info()[1]
    assert memory.name == torch.cuda.get_device_name()


def test_loading_straight_onto_the_gpu(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, tiny_config("qwen3"), seed=1)
    loaded, oracle = load(folder, device="cuda", dtype="float32"), HFOracle(folder)
    assert {p.device.type for p in loaded.model.parameters()} == {"cuda"}
    [prompt] = margin_prompts(oracle, 1, [20], new_tokens=8, vocab=320, min_margin=1e-2)
    assert greedy(loaded.model, prompt, 8) == oracle.greedy(prompt, 8)


def test_a_model_larger_than_the_gpu(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, tiny_config("qwen3"))
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 320', f'"vocab_size": {10**10}'))
    with pytest.raises(OutOfMemoryError, match=r"needs [\d.]+ GiB on cuda, which has [\d.]+ GiB"):
        load(folder, device="cuda")


def test_the_report_reads_the_gpus_memory(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, tiny_config("qwen3"))
    report = make_report(str(folder), device="cuda")
    assert report.memory.total_bytes == torch.cuda.mem_get_info()[1]
    assert report.plan.budget_bytes <= 0.9 * report.memory.total_bytes


@pytest.mark.parametrize("num_tokens", [256, 2048])
def test_activation_peak_of_the_allocator(num_tokens: int) -> None:
    """Qwen3-0.6B's shape in bfloat16; attention returns the query and takes no workspace."""
    model = Transformer(
        QWEN3_0_6B,
        ops=TorchOps(),
        linear=dense_linear_factory(torch.bfloat16, "cuda"),
        dtype=torch.bfloat16,
        device="cuda",
        max_positions=num_tokens,
    )
    for parameter in model.parameters():
        parameter.data.zero_()

    class Elsewhere:
        def __call__(
            self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
        ) -> torch.Tensor:
            return q

        def kv_sink(self, layer: int) -> None:
            return None

    ids = torch.zeros(num_tokens, dtype=torch.int64, device="cuda")
    with torch.inference_mode():
        model(ids, ids, Elsewhere())  # the first call allocates cuBLAS' workspace
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model(ids, ids, Elsewhere())
    measured = torch.cuda.max_memory_allocated() - before
    # The CUDA kernel of rms_norm wants its rows side by side: q, a slice of the merged projection,
    # is copied first, which the formula (checked op by op on the CPU) does not have.
    formula, copied = activation_peak(QWEN3_0_6B, num_tokens), num_tokens * QWEN3_0_6B.q_size * 2
    assert 0.8 * formula <= measured <= 1.05 * formula + copied
