"""``python -m m7_gptq.benchmarks``: accuracy of floats, round-to-nearest and GPTQ."""

from m1_basic.benchmarks.command import main_for

if __name__ == "__main__":
    main_for("m7_gptq", ("accuracy", "kernels"))
