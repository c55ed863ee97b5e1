"""Figure of note 04: how many kernels one decode step launches, counted on the real decoder.

The decoder runs once on the CPU under a mode that sees every operator. An operator that writes
memory is a kernel on a GPU; views and allocations are not. What a fused kernel or a library does
in one launch is counted as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from common.model.interfaces import KVSink
from common.model.linear import dense_linear_factory
from common.model.ops import TorchOps, store_kv
from common.model.transformer import Transformer
from common.model_config import ModelConfig
from common.plot_style import INK, axes, hue, label, legend
from common.qwen3 import QWEN3_0_6B_HF_CONFIG
from m3_paged.kv_cache import PagedKVCache
from tools.figures.registry import FigureInput, figure

PRODUCTS, OTHERS = "matrix products", "everything between them"

_NARROW = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "head_dim": 16,
    "vocab_size": 320,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Widths do not change the number of launches."""


class Launches(TorchDispatchMode):
    """Counts operators that write memory, and what :meth:`one` covers as it says.

    Attributes:
        kinds: Launches by kind.
    """

    def __init__(self) -> None:
        """Nothing is counted yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.kinds = Counter[str]()
        self._inside = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operator, and run it."""
        name = str(func.overloadpacket.__name__)
        view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if not (self._inside or view or name.startswith(("empty", "_unsafe_view", "detach"))):
            self.kinds[PRODUCTS if name in {"mm", "addmm", "bmm"} else OTHERS] += 1
        return func(*args, **(kwargs or {}))

    @contextmanager
    def one(self, launches: int = 1) -> Iterator[None]:
        """What happens inside is this many launches."""
        if not self._inside:
            self.kinds[OTHERS] += launches
        self._inside += 1
        yield
        self._inside -= 1


class _PlainOps(TorchOps):
    """What M3 has on a GPU: PyTorch's operators, whose norm is one kernel there."""

    def __init__(self, counter: Launches) -> None:
        self.counter = counter

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        with self.counter.one():
            return super().rms_norm(x, weight, eps)


class _FusedOps(_PlainOps):
    """One launch each, as :class:`m4_flash.ops.TritonOps`."""

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        with self.counter.one():
            return super().add_rms_norm(x, residual, weight, eps)

    def qk_norm_rope(self, *args: Any) -> tuple[Tensor, Tensor]:
        with self.counter.one():
            return super().qk_norm_rope(*args)

    def mlp_gate_up(self, gate_up: nn.Module, x: Tensor) -> Tensor:
        gate, up = gate_up(x)
        with self.counter.one():
            out: Tensor = F.silu(gate) * up
        return out


class _Attend:
    """M3 stores K and V, then launches its kernel; M4's op has stored them, two kernels attend."""

    def __init__(self, cache: PagedKVCache, counter: Launches, fused: bool) -> None:
        self.cache, self.counter, self.fused = cache, counter, fused
        self.slots = torch.zeros(1, dtype=torch.int64)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not self.fused:
            store_kv(k, v, self.cache.sink(layer, self.slots))
        with self.counter.one(2 if self.fused else 1):
            return torch.zeros_like(q)

    def kv_sink(self, layer: int) -> KVSink | None:
        return self.cache.sink(layer, self.slots) if self.fused else None


def count_launches(*, fused: bool) -> Counter[str]:
    """Launches from the embedding to the logits, for one token of one sequence, by kind.

    Args:
        fused: With M4's fused kernels; else with what M3 launches.
    """
    counter = Launches()
    config = ModelConfig.from_dict({**QWEN3_0_6B_HF_CONFIG, **_NARROW})
    model = Transformer(
        config,
        ops=_FusedOps(counter) if fused else _PlainOps(counter),
        linear=dense_linear_factory(torch.bfloat16, "cpu"),
        dtype=torch.bfloat16,
        device="cpu",
        max_positions=8,
    )
    attend = _Attend(PagedKVCache(model.kv_spec(), 1, 16, "cpu"), counter, fused)
    token = torch.zeros(1, dtype=torch.int64)
    with torch.no_grad(), counter:
        model.logits(model(token, token, attend))
    return counter.kinds


@figure("m4-launches")
def launches(_: FigureInput) -> Any:
    """Draw the launches of one decode step: M3, M4 without graphs, M4 replaying one."""
    rows = {
        "M3": count_launches(fused=False),
        "M4, eager": count_launches(fused=True),
        "M4, one graph": Counter({OTHERS: 1}),
    }
    ax = axes(None, 6.6, 2.2)
    for row, kinds in enumerate(rows.values()):
        left = 0
        for number, kind in enumerate((PRODUCTS, OTHERS)):
            name = kind if row == 0 else None
            ax.barh(row, kinds[kind], 0.62, left=left, color=hue(number), label=name)
            left += kinds[kind]
        ax.text(left + 8, row, f"{left}", va="center", color=INK, fontsize=9)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.invert_yaxis()
    ax.set_xlim(0, 1.12 * max(sum(kinds.values()) for kinds in rows.values()))
    label(ax, None, "launches from the embedding to the logits, 28 layers, one token", None)
    legend(ax)
    return ax
