"""``python -m m2_batching.benchmarks``: throughput by batch size, static against continuous."""

from m1_basic.benchmarks.command import main_for

if __name__ == "__main__":
    main_for("m2_batching", ("throughput", "static_batching"))
