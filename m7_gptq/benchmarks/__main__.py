"""``python -m m7_gptq.benchmarks``: accuracy, the kernels alone, and one stream beside M6."""

from m1_basic.benchmarks.command import main_for

if __name__ == "__main__":
    main_for("m7_gptq", ("accuracy", "kernels", "stream"))
