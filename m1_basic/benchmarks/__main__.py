"""``python -m m1_basic.benchmarks``: latency beside transformers, and what the cache is worth."""

from m1_basic.benchmarks.command import main_for

if __name__ == "__main__":
    main_for("m1_basic", ("latency", "cache_curve"))
