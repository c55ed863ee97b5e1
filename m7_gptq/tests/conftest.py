"""Without a GPU, Triton interprets its kernels: it reads the variable when they are made."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
