"""``python -m m4_flash.benchmarks``: attention, latency, throughput, start-up, products."""

from m1_basic.benchmarks.command import main_for

if __name__ == "__main__":
    main_for("m4_flash", ("attention", "latency", "throughput", "startup", "few_rows"))
