"""Engine options: what they mean, what they may be, and which stage brought each.

Three frozen dataclasses with one owner each: :class:`CacheConfig` belongs to whoever holds KV
memory, :class:`SchedulerConfig` to whoever decides a step, :class:`EngineConfig` to the engine.
Every field is an option of the same name, in Python and on the command line. A stage takes only
the options that it has; one that arrives later is refused, and the message says where it arrives.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from common.errors import ConfigError, UnsupportedOptionError

STAGES = (
    "m0_init",
    "m1_basic",
    "m2_batching",
    "m3_paged",
    "m4_flash",
    "m5_chunked",
    "m6_prefix",
    "m7_gptq",
)

DType = Literal["auto", "float32", "bfloat16", "float16"]
Policy = Literal["fcfs", "priority"]
Index = Literal["hash", "tree"]
LinearBackend = Literal["auto", "torch", "auto_gptq"]


def option(
    default: Any,
    help_text: str,
    since: str,
    until: str | None = None,
    *,
    later: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """A dataclass field that is also a user's option.

    Args:
        default: Value where the user says nothing.
        help_text: One line for ``--help`` and the manual.
        since: First stage that has the option.
        until: Last stage that has it, for options that a later stage makes pointless.
        later: Values that arrive after the option, each with its first stage.
    """
    metadata = {"help": help_text, "since": since, "until": until, "later": later}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class CacheConfig:
    """How KV memory is laid out and how much of it there is."""

    gpu_memory_utilization: float = option(
        0.9,
        "share of the memory to use (a GPU's whole memory from m3_paged on, else what is free)",
        "m2_batching",
    )
    block_size: int | Literal["auto"] = option("auto", "tokens per KV block", "m3_paged")
    num_blocks: int | None = option(
        None, "KV blocks in the pool (default: what the free memory holds)", "m3_paged"
    )
    enable_prefix_caching: bool = option(True, "reuse KV blocks of equal prefixes", "m6_prefix")
    prefix_index: Index = option(
        "hash", "how cached blocks are found: a flat map of hashes, or a tree", "m6_prefix"
    )
    max_cached_blocks: int | None = option(
        None, "cached blocks that nobody uses, at most (default: no limit)", "m6_prefix"
    )

    def __post_init__(self) -> None:
        """Check every field once."""
        share = self.gpu_memory_utilization
        number = isinstance(share, (int, float)) and not isinstance(share, bool)
        if not number or not 0.0 < share <= 1.0:
            raise ConfigError(
                f"gpu_memory_utilization must be in (0, 1], got {self.gpu_memory_utilization!r}"
            )
        if self.block_size != "auto":
            _at_least("block_size", self.block_size, 1)
        if self.num_blocks is not None:
            _at_least("num_blocks", self.num_blocks, 1)
        _switch("enable_prefix_caching", self.enable_prefix_caching)
        _one_of("prefix_index", self.prefix_index, get_args(Index))
        if self.max_cached_blocks is not None:
            _at_least("max_cached_blocks", self.max_cached_blocks, 0)


@dataclass(frozen=True)
class SchedulerConfig:
    """What one engine step may hold."""

    max_num_seqs: int = option(256, "sequences that may run at the same time", "m2_batching")
    max_num_batched_tokens: int = option(
        8192, "tokens that one step may compute, prompts and decodes together", "m2_batching"
    )
    policy: Policy = option("fcfs", "order of the waiting queue", "m2_batching")
    long_prefill_token_threshold: int = option(
        0, "largest slice of one prompt per step (0: the budget alone decides)", "m5_chunked"
    )

    def __post_init__(self) -> None:
        """Check every field once."""
        _at_least("max_num_seqs", self.max_num_seqs, 1)
        _at_least("max_num_batched_tokens", self.max_num_batched_tokens, 1)
        _at_least("long_prefill_token_threshold", self.long_prefill_token_threshold, 0)
        _one_of("policy", self.policy, get_args(Policy))


@dataclass(frozen=True)
class EngineConfig:
    """Everything an engine is built from."""

    model: str = option("smollm2", "local folder, hub id, or smollm2 (embedded)", "m0_init")
    dtype: DType = option("auto", "element type of weights and KV (auto: as stored)", "m0_init")
    device: str = option("auto", "cpu, cuda or cuda:N (auto: cuda where there is one)", "m0_init")
    max_model_len: int | None = option(
        None, "longest prompt plus output in tokens (default: the model's own)", "m1_basic"
    )
    use_cache: bool = option(True, "keep K and V of past tokens", "m1_basic", "m1_basic")
    attention_backend: str = option("auto", "attention implementation", "m4_flash")
    linear_backend: LinearBackend = option(
        "auto",
        "products with weights: the fastest way here, PyTorch's own, or (M7) auto-gptq's",
        "m4_flash",
        later={"auto_gptq": "m7_gptq"},
    )
    programmatic_launch: bool = option(
        True, "kernels may start before the one ahead has ended (Hopper and newer)", "m4_flash"
    )
    head_bits: int | None = option(
        None, "round the output matrix, and a tied embedding, to 8 bits (default: as stored)",
        "m7_gptq",
    )  # fmt: skip
    enforce_eager: bool = option(False, "do not capture CUDA graphs", "m4_flash")
    overlap: bool | None = option(
        None, "plan a step while the device computes the one before (default: on a GPU)",
        "m5_chunked",
    )  # fmt: skip
    seed: int = option(0, "seed of requests that carry none", "m1_basic")
    trace: bool = option(False, "record every step", "m1_basic")
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    def __post_init__(self) -> None:
        """Check every field once."""
        if not isinstance(self.model, str) or not self.model:
            raise ConfigError(f"model must be a non-empty string, got {self.model!r}")
        _one_of("dtype", self.dtype, get_args(DType))
        _one_of("linear_backend", self.linear_backend, get_args(LinearBackend))
        if self.head_bits not in (None, 8):
            raise ConfigError(f"head_bits must be 8 or None, got {self.head_bits!r}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(self.device)):
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {self.device!r}")
        if self.max_model_len is not None:
            _at_least("max_model_len", self.max_model_len, 2)
        if not isinstance(self.attention_backend, str):
            raise ConfigError(f"attention_backend must be a name, got {self.attention_backend!r}")
        for name in ("use_cache", "programmatic_launch", "enforce_eager", "trace"):
            _switch(name, getattr(self, name))
        if self.overlap is not None:
            _switch("overlap", self.overlap)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ConfigError(f"seed must be an integer, got {self.seed!r}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be in [0, 2**63), got {self.seed}")

    @classmethod
    def from_options(cls, stage: str, options: Mapping[str, Any]) -> EngineConfig:
        """Build the nested configs from a stage's flat keyword options.

        Args:
            stage: Folder name of the stage, one of :data:`STAGES`.
            options: Option name to value. Names not given keep their defaults.

        Raises:
            UnsupportedOptionError: The stage does not have an option of that name.
            ConfigError: A value is outside its range.
        """
        refuse_unknown_options(stage, options)
        _refuse_later_values(stage, options)

        def pick(owner: type) -> dict[str, Any]:
            names = {f.name for f in dataclasses.fields(owner)}
            return {name: value for name, value in options.items() if name in names}

        return cls(
            **pick(cls),
            cache=CacheConfig(**pick(CacheConfig)),
            scheduler=SchedulerConfig(**pick(SchedulerConfig)),
        )


@dataclass(frozen=True)
class Option:
    """One row of the option table.

    Attributes:
        name: Keyword in Python; ``--name`` with dashes on the command line.
        default: Value where the user says nothing.
        help: One line of explanation.
        since: First stage that has it.
        until: Last stage that has it, or None.
        value_type: ``str``, ``int``, ``float`` or ``bool``.
        choices: Accepted values, where they are a fixed list.
        optional: Whether None is accepted.
        later: Choices that arrive after ``since``, each with its first stage.
    """

    name: str
    default: Any
    help: str
    since: str
    until: str | None
    value_type: type
    choices: tuple[str, ...] = ()
    optional: bool = False
    later: Mapping[str, str] = field(default_factory=dict)

    def in_stage(self, stage: str) -> bool:
        """Whether ``stage`` has this option."""
        at = STAGES.index(stage)
        last = STAGES.index(self.until) if self.until else len(STAGES)
        return STAGES.index(self.since) <= at <= last

    def choices_in(self, stage: str) -> tuple[str, ...]:
        """The choices that ``stage`` has."""
        at = STAGES.index(stage)
        return tuple(
            each for each in self.choices if at >= STAGES.index(self.later.get(each, self.since))
        )


def all_options() -> Iterator[Option]:
    """Every option of every stage, in the order of the dataclasses."""
    for owner in (EngineConfig, CacheConfig, SchedulerConfig):
        hints = get_type_hints(owner)
        for item in dataclasses.fields(owner):
            if "since" not in item.metadata:
                continue
            kind, choices, optional = value_type(hints[item.name])
            meta = item.metadata
            yield Option(
                item.name,
                item.default,
                meta["help"],
                meta["since"],
                meta["until"],
                kind,
                choices,
                optional,
                meta["later"],
            )


def options_of(stage: str) -> tuple[Option, ...]:
    """The options that ``stage`` has, each with the choices that it has there."""
    rows = (row for row in all_options() if row.in_stage(stage))
    return tuple(dataclasses.replace(row, choices=row.choices_in(stage)) for row in rows)


def refuse_unknown_options(stage: str, options: Mapping[str, Any]) -> None:
    """Raise for the first option that ``stage`` does not have.

    Raises:
        UnsupportedOptionError: The message names the stage that brings the option, or lists the
            stage's own where no stage has it.
    """
    own = {row.name for row in options_of(stage)}
    later = {row.name: row for row in all_options() if row.name not in own}
    for name in options:
        if name in own:
            continue
        if name in later:
            row = later[name]
            early = STAGES.index(stage) < STAGES.index(row.since)
            where = f"arrives with {row.since}" if early else f"ended with {row.until}"
            raise UnsupportedOptionError(f"{stage} has no option {name!r}: it {where}")
        listed = ", ".join(sorted(own))
        raise UnsupportedOptionError(f"{stage} has no option {name!r}; it has: {listed}")


def _refuse_later_values(stage: str, options: Mapping[str, Any]) -> None:
    """Raise for a value that the option does not have in ``stage`` yet.

    Raises:
        UnsupportedOptionError: The message names the stage that brings the value.
        ConfigError: No stage has it.
    """
    for row in options_of(stage):
        if not row.later or row.name not in options:
            continue
        value = options[row.name]
        if value in row.later and value not in row.choices:
            raise UnsupportedOptionError(
                f"{stage} has no {row.name} {value!r}: it arrives with {row.later[value]}"
            )
        _one_of(row.name, value, row.choices)


def value_type(hint: Any) -> tuple[type, tuple[str, ...], bool]:
    """Split a field's type hint into (scalar type, literal choices, None allowed).

    ``int | None`` gives ``(int, (), True)``; ``int | Literal["auto"]`` gives
    ``(int, ("auto",), False)``; ``Literal["a", "b"]`` gives ``(str, ("a", "b"), False)``.
    """
    if hint in (str, int, float, bool):
        return hint, (), False
    if get_origin(hint) is Literal:
        return str, tuple(get_args(hint)), False
    scalar: type = str
    choices: tuple[str, ...] = ()
    optional = False
    for part in get_args(hint):
        if part is type(None):
            optional = True
        elif get_origin(part) is Literal:
            choices = tuple(get_args(part))
        elif part in (str, int, float, bool):
            scalar = part
    return scalar, choices, optional


def _at_least(name: str, value: object, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{name} must be an integer of at least {minimum}, got {value!r}")


def _switch(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, got {value!r}")


def _one_of(name: str, value: object, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ConfigError(f"{name} must be one of {', '.join(accepted)}, got {value!r}")
