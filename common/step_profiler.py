"""``--profile``: run the engine's first steps under ``torch.profiler`` and print their budget."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

from common.environment import device_info
from common.metrics import Peak, mbu, mfu
from common.op_groups import ATTENTION_SCOPE, GROUPS, kernel_group, operator_group
from common.peaks import measured_bandwidth, measured_flops
from common.stats import StepTiming
from common.step_budget import HOST, PhaseBudget, Span, step_budgets, tenths

MAX_STEPS = 64
"""Steps that are profiled: an operator costs memory, and a budget does not change after that."""

ORIGIN = "folovllm::origin"


class StepProfiler:
    """Context manager around the work of an engine; :meth:`report` afterwards.

    Args:
        engine: Any stage's, from M1 on.
        max_steps: Steps after which the profiler stops and the engine goes on alone.
    """

    def __init__(self, engine: Any, max_steps: int = MAX_STEPS) -> None:
        self.engine, self.max_steps = engine, max_steps
        self.device = str(engine.device)
        self.steps: list[StepTiming] = []
        self._hook: Any = None
        self._profile: Any = None
        self._origin = 0.0
        self._events: list[Any] = []

    def __enter__(self) -> StepProfiler:
        """Start the profiler, and watch the engine's steps."""
        # Kineto would announce its start and stop on stderr.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        from torch.profiler import ProfilerActivity, profile

        gpu = self.device.startswith("cuda")
        # On a GPU the operators' own cost would show as idle time: kernels alone are recorded.
        activity = ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU
        self._profile = profile(activities=[activity])
        self._profile.start()
        self._origin = _mark(self.device)
        self._hook = self.engine.model.register_forward_pre_hook(_scope_attention)
        self.engine.recorder.watch = self._on_step
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Stop, however the work ended."""
        self._stop()

    def report(self) -> str:
        """The budget as text; one line where no step ran."""
        if not self.steps:
            return "[profile: no step ran]"
        model = self.engine.model
        dtype = str(model.dtype).removeprefix("torch.")
        budgets = step_budgets(
            self.steps,
            to_spans(self._events, self._origin, gpu=self.device.startswith("cuda")),
            model.config,
            weight_bytes=read_bytes(model),
            dtype=dtype,
        )
        peaks = measured_bandwidth(self.device), measured_flops(self.device, dtype)
        title = f"step budget · {device_info(self.device).name} · {dtype}"
        return budget_text(title, budgets, *peaks, gpu=self.device.startswith("cuda"))

    def _on_step(self, step: StepTiming) -> None:
        self.steps.append(step)
        if len(self.steps) == self.max_steps:
            self._stop()

    def _stop(self) -> None:
        if self._hook is None:
            return
        self.engine.recorder.watch = None
        self._hook.remove()
        self._hook = None
        self._profile.stop()
        self._events = list(self._profile.events() or ())


def read_bytes(model: Any) -> int:
    """Bytes of weights that a step reads: all, but an embedding only where it is the head too."""
    total, table = int(model.weight_bytes()), model.embed_tokens.weight
    own_head = all(parameter is not table for parameter in model.lm_head.parameters())
    return total - table.nbytes if own_head else total


def _mark(device: str) -> float:
    """Leave an event in the profile; returns the time at which it ended.

    The profiler counts from a moment of its own; this event, its first, ties that to
    ``time.perf_counter``.
    """
    import torch
    from torch.profiler import record_function

    if device.startswith("cuda"):  # gpu-only: common/tests/test_gpu.py::test_step_profiler
        torch.zeros(1, device=device)
        torch.cuda.synchronize(device)
        return time.perf_counter()
    with record_function(ORIGIN):
        pass
    return time.perf_counter()


def _scope_attention(_model: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A hook before the decoder: wraps its ``attend`` in a range that the profiler records."""
    ids, positions, attend, *rest = args
    return (ids, positions, _ScopedAttend(attend), *rest)


class _ScopedAttend:
    """An ``Attend`` whose calls are ranges of the profile."""

    def __init__(self, attend: Any) -> None:
        self.attend, self.kv_sink = attend, attend.kv_sink

    def __call__(self, *args: Any) -> Any:
        """Attend in one layer."""
        from torch.profiler import record_function

        with record_function(ATTENTION_SCOPE):
            return self.attend(*args)


def to_spans(events: Iterable[Any], origin: float, *, gpu: bool) -> list[Span]:
    """A profiler's events as spans on the clock of ``time.perf_counter``.

    Args:
        events: Objects with ``name``, ``device_type`` (an enum with the name CPU or CUDA) and
            ``time_range`` (``start`` and ``end`` in microseconds).
        origin: When the first of them ended.
        gpu: Whether kernels or operators are looked at.
    """
    kind = "CUDA" if gpu else "CPU"
    mine = [event for event in events if event.device_type.name == kind]
    mine.sort(key=lambda event: (event.time_range.start, -event.time_range.end))
    if not mine:
        return []
    shift = origin - mine[0].time_range.end / 1e6
    group_of: Callable[[str], str] = kernel_group if gpu else operator_group
    spans, scope_end = [], float("-inf")
    for event in mine[1:]:
        begin, end = (us / 1e6 + shift for us in (event.time_range.start, event.time_range.end))
        if event.name == ATTENTION_SCOPE:
            scope_end = end
            group = HOST  # of its own time; the operators inside have theirs
        else:
            group = "attention" if begin < scope_end else group_of(event.name)
        # On a GPU the range of a scope is no kernel: it covers what runs, and idle time too.
        if not (gpu and event.name == ATTENTION_SCOPE):
            spans.append(Span(begin, end, group))
    return spans


def budget_text(
    title: str,
    budgets: Sequence[PhaseBudget],
    bandwidth: Peak,
    flops: Peak,
    *,
    gpu: bool,
) -> str:
    """A table with a column per phase, its shares adding up to 100 %, and MBU and MFU last."""
    host = "idle, waits for the host" if gpu else "Python and the rest"
    shares = [tenths([budget.parts[name] for name in (*GROUPS, HOST)]) for budget in budgets]
    rows: list[tuple[str, list[str]]] = [
        ("", [budget.phase for budget in budgets]),
        ("steps", [str(budget.num_steps) for budget in budgets]),
        ("ms per step", [f"{budget.seconds / budget.num_steps * 1e3:.2f}" for budget in budgets]),
    ]
    for index, name in enumerate((*GROUPS, host)):
        rows.append((name, [f"{share[index]:.1f} %" for share in shares]))
    lines = [f"{name:<26}{''.join(f'{cell:>12}' for cell in cells)}" for name, cells in rows]
    used = [
        f"{budget.phase} MBU {mbu(budget.num_bytes, budget.seconds, bandwidth).share:.1%}, "
        f"MFU {mfu(budget.flops, budget.seconds, flops).share:.1%}"
        for budget in budgets
    ]
    ceilings = f"of {bandwidth.value / 1e9:.3g} GB/s and {flops.value / 1e9:.4g} GFLOP/s"
    last = " · ".join([*used, f"{ceilings}, {bandwidth.source} here"])
    return "\n".join([f"[{title}]", *(line.rstrip() for line in lines), last])
