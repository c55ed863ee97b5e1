"""``python -m m7_gptq.benchmarks``: accuracy, kernels alone, one stream, and the ladder from M1."""

from m1_basic.benchmarks.command import main_for

if __name__ == "__main__":
    main_for("m7_gptq", ("accuracy", "kernels", "stream", "ladder"))
