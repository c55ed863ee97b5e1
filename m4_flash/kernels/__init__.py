"""Triton kernels of M4: attention (prefill, decode), KV store, fused normalisation and MLP."""
