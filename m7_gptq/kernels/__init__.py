"""Triton kernels of M7: products with weights of 4 or 8 bits that are never stored dequantised.

::

    rows of x     1 … 4          5 … 64              more
    kernel        gemv.py        gemm.py             gemm.py dequantise(), then cuBLAS
    limited by    weight bytes   weight bytes        arithmetic

``repack.py`` says how the integers lie in memory, ``matmul.py`` chooses a kernel by the number of
rows. The limits above are the defaults of :class:`m7_gptq.kernels.matmul.Crossover`.
"""
