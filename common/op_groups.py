"""Which part of a step a kernel or an operator belongs to: one table of name patterns.

A profiler knows names alone. On a GPU these are kernels: this project's Triton kernels, cuBLAS's
products, PyTorch's own small ones. On a CPU they are PyTorch's operators. The first pattern that
fits decides, so that exceptions stand above the rule.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal

Group = Literal["attention", "matrix products", "small operations", "sampling", "copies"]
GROUPS: tuple[Group, ...] = (
    "attention",
    "matrix products",
    "small operations",
    "sampling",
    "copies",
)

ATTENTION_SCOPE = "folovllm::attention"
"""A range of this name marks attention, also where that is written as products and a softmax."""

KERNELS: tuple[tuple[str, Group], ...] = (
    ("_prefill_kernel*", "attention"),
    ("_decode_kernel*", "attention"),
    ("_paged_decode_kernel*", "attention"),
    ("_merge_kernel*", "attention"),
    ("_merge_slices_kernel*", "attention"),
    ("_store_kernel*", "attention"),
    ("*flash_fwd*", "attention"),
    ("*fmha*", "attention"),
    ("_few_rows_kernel*", "matrix products"),
    ("_dot_kernel*", "matrix products"),
    ("_gemv_kernel*", "matrix products"),
    ("_gemm_kernel*", "matrix products"),
    ("_sum_parts_kernel*", "matrix products"),
    ("_dequantise_kernel*", "matrix products"),
    ("_race_kernel*", "sampling"),
    ("_race_winner_kernel*", "sampling"),
    ("_noise_kernel*", "sampling"),
    ("_rms_norm_kernel*", "small operations"),
    ("_qk_norm_rope_kernel*", "small operations"),
    ("_silu_mul_kernel*", "small operations"),
    ("_expand_kernel*", "small operations"),
    ("_append_kernel*", "small operations"),
    ("_lookup_kernel*", "small operations"),
    ("_read_kernel*", "small operations"),
    ("nvjet_*", "matrix products"),
    ("cublasLt::splitKreduce_kernel*", "matrix products"),
    ("*gemm*", "matrix products"),
    ("*gemv*", "matrix products"),
    ("*cutlass*", "matrix products"),
    ("Memcpy*", "copies"),
    ("Memset*", "copies"),
    ("*ArgMax*", "sampling"),
    ("*multinomial*", "sampling"),
    ("*RadixSort*", "sampling"),
    ("*topk*", "sampling"),
    ("*", "small operations"),  # at::native::* above all
)

OPERATORS: tuple[tuple[str, Group], ...] = (
    ("aten::*attention*", "attention"),
    ("aten::mm", "matrix products"),
    ("aten::bmm", "matrix products"),
    ("aten::addmm", "matrix products"),
    ("aten::baddbmm", "matrix products"),
    ("aten::matmul", "matrix products"),
    ("aten::linear", "matrix products"),
    ("aten::mkldnn_linear", "matrix products"),
    ("mkldnn::_linear_pointwise*", "matrix products"),
    ("aten::argmax", "sampling"),
    ("aten::multinomial", "sampling"),
    ("aten::sort", "sampling"),
    ("aten::topk", "sampling"),
    ("aten::cumsum", "sampling"),
    ("aten::exponential_", "sampling"),
    ("aten::*softmax*", "sampling"),  # that of attention lies in its scope
    ("aten::copy_", "copies"),
    ("aten::_to_copy", "copies"),
    ("aten::clone", "copies"),
    ("aten::contiguous", "copies"),
    ("aten::index_copy_", "copies"),
    ("aten::_index_put_impl_", "copies"),
    ("*", "small operations"),
)


@lru_cache(maxsize=4096)
def kernel_group(name: str) -> Group:
    """The part of a step that a GPU kernel belongs to."""
    return _find(KERNELS, name)


@lru_cache(maxsize=4096)
def operator_group(name: str) -> Group:
    """The part of a step that a PyTorch operator on a CPU belongs to, outside of attention."""
    return _find(OPERATORS, name)


def _find(table: tuple[tuple[str, Group], ...], name: str) -> Group:
    # A C++ name begins with its return type, and so would escape a pattern of its beginning.
    short = name.removeprefix("void ")
    return next(group for pattern, group in table if fnmatchcase(short, pattern))
