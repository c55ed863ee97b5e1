"""``python -m m5_chunked.benchmarks``: gaps, throughput, chunk sizes, speed, transformers."""

from m1_basic.benchmarks.command import main_for

if __name__ == "__main__":
    main_for("m5_chunked", ("gaps", "throughput", "chunk_size", "speed", "transformers"))
