"""The table of names: every kernel of ours stands in it, and what others are called falls right."""

import re

import pytest

from common.environment import REPOSITORY
from common.op_groups import GROUPS, KERNELS, OPERATORS, kernel_group, operator_group

KERNEL = re.compile(r"@triton\.jit[^\n]*\n(?:@[^\n]*\n)*def (_\w*kernel)\(")


def kernels_of_ours() -> set[str]:
    """Names of the Triton kernels in the stages (helpers that kernels call have other names)."""
    texts = (
        path.read_text(encoding="utf-8")
        for path in REPOSITORY.glob("m[0-9]_*/**/*.py")
        if "tests" not in path.parts
    )
    return {name for text in texts for name in KERNEL.findall(text)}


def test_every_kernel_of_ours_is_in_the_table_by_name() -> None:
    ours = kernels_of_ours()
    assert "_decode_kernel" in ours
    assert ours <= {pattern.removesuffix("*") for pattern, _ in KERNELS}


@pytest.mark.parametrize(
    "name,group",
    [
        ("_decode_kernel", "attention"),
        ("_merge_kernel", "attention"),
        ("_qk_norm_rope_kernel", "small operations"),
        ("_race_kernel", "sampling"),
        ("_race_winner_kernel", "sampling"),
        ("_gemv_kernel", "matrix products"),
        ("nvjet_sm90_tst_64x8_64x16_4x1_v_bz_splitK_TNT", "matrix products"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float>(…)", "matrix products"),
        ("ampere_bf16_s16816gemm_bf16_64x64_ldg8_f2f_stages_64x5_tn", "matrix products"),
        ("void flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128>>(…)", "attention"),
        ("void at::native::elementwise_kernel<128, 4>(…)", "small operations"),
        ("void at::native::reduce_kernel<512, 1, at::native::ArgMaxOps<float>>(…)", "sampling"),
        ("Memcpy DtoH (Device -> Pinned)", "copies"),
        ("something_new", "small operations"),
    ],
)
def test_kernels(name: str, group: str) -> None:
    assert kernel_group(name) == group


@pytest.mark.parametrize(
    "name,group",
    [
        ("aten::mm", "matrix products"),
        ("mkldnn::_linear_pointwise", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::argmax", "sampling"),
        ("aten::_softmax", "sampling"),
        ("aten::copy_", "copies"),
        ("aten::silu", "small operations"),
    ],
)
def test_operators(name: str, group: str) -> None:
    assert operator_group(name) == group


def test_tables_name_known_groups_and_end_with_a_rule_for_all() -> None:
    for table in (KERNELS, OPERATORS):
        assert {group for _, group in table} == set(GROUPS)
        assert table[-1][0] == "*"
        assert len({pattern for pattern, _ in table}) == len(table)
