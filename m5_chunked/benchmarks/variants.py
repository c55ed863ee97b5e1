"""What the benchmarks of this stage compare: M4, and M5 with one budget after the other."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass

from m4_flash.backends.select import BACKENDS
from m4_flash.benchmarks.engines import m4_engine
from m4_flash.engine import LLMEngine as M4Engine
from m5_chunked.engine import LLMEngine as M5Engine

UNCHUNKED = 8192
"""A budget that holds every prompt of these benchmarks; it is also the default."""

BUDGET_NOTE = (
    "one engine serves all budgets: between two runs only max_num_batched_tokens (and "
    "long_prefill_token_threshold) of its scheduler change. m4_flash has no budget label: it "
    "computes every prompt whole, and nobody decodes meanwhile"
)

Labels = dict[str, str | int | float | bool]


@dataclass(frozen=True)
class Variant:
    """An engine, and what its scheduler may put into one step.

    Attributes:
        engine: M4's or M5's.
        budget: ``max_num_batched_tokens`` of M5; None for M4.
        threshold: ``long_prefill_token_threshold`` of M5.
    """

    engine: M4Engine | M5Engine
    budget: int | None = None
    threshold: int = 0

    @property
    def name(self) -> str:
        """The variant in a few words, as a key."""
        return f"{self.engine.stage} {self.budget} {self.threshold}"

    @property
    def labels(self) -> Labels:
        """What sets its rows apart."""
        labels: Labels = {"engine": self.engine.stage}
        if self.budget is not None:
            labels |= {"budget": self.budget, "threshold": self.threshold}
        return labels

    def ready(self) -> M4Engine | M5Engine:
        """The engine, idle, with this variant's budget.

        A budget is the scheduler's alone (memory, graphs and kernels know nothing of it), so all
        variants share one engine: one copy of the weights, and no difference but the schedule.
        """
        assert not self.engine.has_unfinished_requests(), f"{self.name} is still at work"
        if isinstance(self.engine, M5Engine):
            assert self.budget is not None, "M5 has a budget"
            seats = self.engine.config.scheduler.max_num_seqs
            # An engine that is built with fewer tokens than seats has fewer seats.
            assert self.budget >= seats, f"{self.budget} tokens for {seats} seats"
            scheduler = self.engine.scheduler
            scheduler.max_num_batched_tokens = self.budget
            scheduler.long_prefill_token_threshold = self.threshold
        return self.engine


def engines(
    args: Namespace, *, max_model_len: int, max_num_seqs: int, pool_tokens: int
) -> tuple[M4Engine, M5Engine]:
    """Both stages over the same backend and pools of the same size.

    Args:
        args: The benchmark's command line.
        max_model_len: Longest sequence.
        max_num_seqs: Sequences at a time.
        pool_tokens: Places of each KV pool, rounded up to whole blocks.
    """
    name = backend(args)
    m4 = m4_engine(
        args, name, max_model_len=max_model_len, max_num_seqs=max_num_seqs, pool_tokens=pool_tokens
    )
    m5 = M5Engine(
        args.model,
        dtype=args.dtype,
        device=args.device,
        attention_backend=name,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=UNCHUNKED,
        num_blocks=-(-pool_tokens // BACKENDS[name].default_block_size),
    )
    assert m4.kv_bytes() == m5.kv_bytes(), "equal KV memory"
    return m4, m5


def backend(args: Namespace) -> str:
    """Our own kernels on a GPU, PyTorch's attention elsewhere."""
    return "triton" if args.device.startswith("cuda") else "sdpa"


def settings(args: Namespace, engine: M5Engine) -> Labels:
    """The options of a result file."""
    return {
        "model": args.model,
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "attention_backend": engine.runner.backend.name,
        "block_size": engine.runner.cache.block_size,
        "graphs": engine.runner.graphs is not None,
        "lookahead": engine.loop.lookahead,
        "num_blocks": engine.runner.cache.num_blocks,
        "max_num_seqs": engine.config.scheduler.max_num_seqs,
        "max_model_len": engine.max_model_len,
    }
