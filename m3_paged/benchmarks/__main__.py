"""``python -m m3_paged.benchmarks``: memory use, throughput, scheduler cost, swap or recompute."""

from m1_basic.benchmarks.command import main_for

if __name__ == "__main__":
    main_for("m3_paged", ("memory_use", "throughput", "scheduler_cost", "swap_or_recompute"))
