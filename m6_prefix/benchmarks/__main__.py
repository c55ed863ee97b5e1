"""``python -m m6_prefix.benchmarks``: TTFT on a hit, hit rates, indexes, a chat, throughput."""

from m1_basic.benchmarks.command import main_for

if __name__ == "__main__":
    main_for("m6_prefix", ("ttft", "hit_rate", "index_cost", "chat", "throughput"))
