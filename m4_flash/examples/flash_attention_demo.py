"""Flash attention by hand: one query over eight keys, then tiles, then what it saves.

    python m4_flash/examples/flash_attention_demo.py
    python m4_flash/examples/flash_attention_demo.py --device cuda

Softmax needs the largest score and the sum of all exponentials, so it seems to need all scores at
once. The online softmax keeps a running maximum m, a running sum l and a running output o, and
corrects them whenever a larger score appears. What is printed is the same on every machine, but
for the measured table, which only a GPU has: its allocator counts bytes exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.cli_errors import OneLineParser, run
from common.devices import format_bytes
from common.memory import PeakMemory
from common.model_costs import naive_score_bytes
from common.qwen3 import QWEN3_0_6B
from m0_init.loader import resolve_device
from m1_basic.attention import naive_attention

SCORES = (1.0, 3.0, 0.5, 2.0, 4.0, -1.0, 2.5, 1.5)
VALUES = (10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0)


@dataclass(frozen=True)
class Running:
    """What is known after some of the keys.

    Attributes:
        m: Largest score so far.
        l: Sum of ``exp(score − m)`` so far.
        o: Sum of ``exp(score − m) · value`` so far; divided by ``l`` at the very end.
    """

    m: float = -math.inf
    l: float = 0.0  # noqa: E741 (the paper's name)
    o: float = 0.0

    def merge(self, other: Running) -> Running:
        """Both together: each side is rescaled to the larger maximum."""
        m = max(self.m, other.m)
        ours, theirs = math.exp(self.m - m), math.exp(other.m - m)
        return Running(m, ours * self.l + theirs * other.l, ours * self.o + theirs * other.o)


def main(argv: list[str]) -> int:
    """Print the four parts. Returns the exit code."""
    parser = OneLineParser(description="Flash attention by hand.")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--smoke", action="store_true", help="smaller tensors")
    args = parser.parse_args(argv)
    device = str(resolve_device(args.device))
    one_number_at_a_time()
    tiles_of_four()
    a_whole_head(24 if args.smoke else 200)
    memory_by_length(device, (256, 512) if args.smoke else (2048, 4096, 8192))
    return 0


def one_number_at_a_time() -> None:
    """The online softmax, key by key, beside the softmax that sees everything."""
    print("1. One query, eight keys, one at a time")
    print("   key  score  value      m  exp(m_old-m)  exp(score-m)         l          o")
    state = Running()
    for key, (score, value) in enumerate(zip(SCORES, VALUES, strict=True)):
        before, state = state, state.merge(Running(score, 1.0, value))
        rescale, weight = math.exp(before.m - state.m), math.exp(score - state.m)
        mark = " <- a larger score: what was there is scaled down" if rescale < 1 and key else ""
        print(
            f"   {key:3}  {score:5.1f}  {value:5.0f}  {state.m:5.1f}  {rescale:12.4f}"
            f"  {weight:12.4f}  {state.l:8.4f}  {state.o:9.4f}{mark}"
        )
    weights = [math.exp(score - max(SCORES)) for score in SCORES]
    whole = sum(w * v for w, v in zip(weights, VALUES, strict=True)) / sum(weights)
    print(f"   o / l = {state.o / state.l:.6f}; softmax over all eight at once: {whole:.6f}")


def tiles_of_four() -> None:
    """Two tiles computed apart and merged: what split-KV decoding does."""
    print("\n2. Two tiles of four keys, computed apart, then merged")
    halves = [tile_state(range(4)), tile_state(range(4, 8))]
    for number, half in enumerate(halves):
        print(f"   tile {number}: m = {half.m:.1f}  l = {half.l:.4f}  o = {half.o:.4f}")
    both = halves[0].merge(halves[1])
    print(f"   merged: m = {both.m:.1f}  l = {both.l:.4f}  o / l = {both.o / both.l:.6f}")


def tile_state(keys: range) -> Running:
    """The state of some keys by themselves."""
    m = max(SCORES[key] for key in keys)
    weights = {key: math.exp(SCORES[key] - m) for key in keys}
    return Running(m, sum(weights.values()), sum(w * VALUES[key] for key, w in weights.items()))


def a_whole_head(length: int, tile: int = 16) -> None:
    """The same loop over tiles of a matrix, checked against the formula."""
    print(f"\n3. A causal head of {length} tokens in tiles of {tile}x{tile}")
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(length, 1, 64, generator=generator) for _ in range(3))
    out, counts = flash_attention(q[:, 0], k[:, 0], v[:, 0], tile)
    exact = naive_attention(q, k, v, 64**-0.5)[:, 0]
    total = sum(counts.values())
    print(
        f"   {total} tiles of scores: {counts['full']} computed without a mask, "
        f"{counts['masked']} masked, {counts['skipped']} never computed"
    )
    print(
        f"   equal to the written-out formula within 1e-5: {torch.allclose(out, exact, atol=1e-5)}"
    )
    print(f"   scores held at a time: {tile * tile:,} instead of {length * length:,}")


def flash_attention(q: Tensor, k: Tensor, v: Tensor, tile: int) -> tuple[Tensor, dict[str, int]]:
    """Causal attention of one head, a tile of scores at a time (Dao 2023, algorithm 1).

    Args:
        q: ``[length, head_dim]``.
        k: Same shape.
        v: Same shape.
        tile: Rows and columns of a tile.

    Returns:
        ``[length, head_dim]``, and how many tiles were full, masked and skipped.
    """
    length, out = len(q), torch.empty_like(q)
    counts = {"full": 0, "masked": 0, "skipped": 0}
    for first in range(0, length, tile):
        rows = torch.arange(first, min(first + tile, length))
        m = torch.full((len(rows), 1), -math.inf)
        total, acc = torch.zeros_like(m), torch.zeros(len(rows), q.shape[1])
        for begin in range(0, length, tile):
            if begin > rows[-1]:
                counts["skipped"] += 1
                continue
            keys = torch.arange(begin, min(begin + tile, length))
            scores = q[rows] @ k[keys].T * q.shape[1] ** -0.5
            if keys[-1] > rows[0]:
                scores = scores.masked_fill(keys > rows[:, None], -math.inf)
            counts["masked" if keys[-1] > rows[0] else "full"] += 1
            new_m = torch.maximum(m, scores.amax(1, keepdim=True))
            weights, rescale = (scores - new_m).exp(), (m - new_m).exp()
            total = total * rescale + weights.sum(1, keepdim=True)
            acc = acc * rescale + weights @ v[keys]
            m = new_m
        out[rows] = acc / total
    return out, counts


def memory_by_length(device: str, lengths: tuple[int, ...]) -> None:
    """What one layer of Qwen3-0.6B holds besides q, k, v and the output, computed and measured."""
    heads = QWEN3_0_6B.num_heads
    print(f"\n4. One layer of Qwen3-0.6B ({heads} query heads, bfloat16), beside its inputs")
    print("     length   naive: scores and weights   flash: m and l of each row")
    for length in (512, 2048, 8192, 32768, 131072):
        scores, rows = 2 * naive_score_bytes(QWEN3_0_6B, length), 2 * heads * length * 4
        print(f"   {length:8,}   {format_bytes(scores):>25}   {format_bytes(rows):>26}")
    if not device.startswith("cuda"):
        print("   Not measured: only a GPU's allocator counts exactly (--device cuda).")
        return
    print("   measured, the output included:")
    for length in lengths:
        naive_peak, flash_peak = (measured_bytes(fn, length, device) for fn in (written_out, fused))
        print(f"   {length:8,}   {format_bytes(naive_peak):>25}   {format_bytes(flash_peak):>26}")


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """M1's attention; ``[length, heads, head_dim]``."""
    return naive_attention(q, k, v, q.shape[-1] ** -0.5)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's flash attention; ``[1, heads, length, head_dim]``."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def measured_bytes(fn: Callable[[Tensor, Tensor, Tensor], Tensor], length: int, device: str) -> int:
    """Bytes that one call adds to what its inputs hold."""
    config = QWEN3_0_6B
    q, k, v = (
        torch.randn(length, count, config.head_dim, dtype=torch.bfloat16, device=device)
        for count in (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    )
    fn(q, k, v)  # libraries allocate workspace at their first call
    with PeakMemory(device) as watch:
        fn(q, k, v)
    return watch.result.growth


if __name__ == "__main__":
    run(main)
