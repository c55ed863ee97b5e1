"""The other side of the cross-check: GPTQModel and transformers, in an environment of their own.

``python theirs.py JOBS.json`` imports nothing of this project and reads and writes files only. Each
job names a checkpoint and token ids; the answer is a safetensors file with logits and dequantised
weights, or the reason why there is none. All arithmetic is float32: weights and scales are stored
in float16, so nothing is rounded on the way.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before the imports: two workers on any machine (with one core GPTQModel 7.6 finds one and stops),
# and no compiled variants, which would take a minute each and compute the same.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch
import transformers
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Answer = dict[str, Tensor]


@torch.inference_mode()
def logits(model: nn.Module, ids: Tensor) -> Tensor:
    """``[tokens, vocab]`` float32 of one sequence."""
    result: Tensor = model(input_ids=ids[None], use_cache=False).logits[0].float()
    return result.contiguous()


def weights(model: nn.Module) -> Answer:
    """Ŵ ``[out, in]`` float32 of every quantised layer, as GPTQModel's own layer unpacks it."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "qweight"):
            found[f"weight:{name}"] = module.dequantize_weight().float().T.contiguous()
    return found


def loaded(folder: str) -> nn.Module:
    """A checkpoint in GPTQModel's plain PyTorch layers, float32 from here on."""
    wrapped = GPTQModel.load(folder, backend=BACKEND.GPTQ_TORCH, device="cpu", dtype=torch.float16)
    return _float(wrapped.model)


def _float(model: Any) -> nn.Module:
    """Everything in float32; transformers' own ``float`` refuses quantised models."""
    result: nn.Module = nn.Module.float(model).eval()
    return result


def read(job: dict[str, Any], ids: Tensor) -> Answer:
    """A checkpoint of ours (or their own) through GPTQModel."""
    model = loaded(job["folder"])
    return {"logits": logits(model, ids), **weights(model)}


def read_by_transformers(job: dict[str, Any], ids: Tensor) -> Answer:
    """The same through ``AutoModelForCausalLM``, with the layer that transformers is told to take.

    It loads in the stored dtype and is then run in float32.
    """
    config = transformers.GPTQConfig(bits=job["bits"], backend="gptq_torch")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        job["folder"], device_map="cpu", dtype=torch.float16, quantization_config=config
    )
    return {"logits": logits(_float(model), ids)}


def quantise(job: dict[str, Any], ids: Tensor) -> Answer:
    """A dense checkpoint quantised and written by GPTQModel, then loaded again."""
    config = QuantizeConfig(device="cpu", offload_to_disk=False, **job["config"])
    model = GPTQModel.load(job["source"], config)
    samples = load_file(job["samples"])["token_ids"]
    model.quantize([{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])}
                    for row in samples], batch_size=1)  # fmt: skip
    model.save(job["folder"])
    return read(job, ids)


ACTIONS: dict[str, Callable[[dict[str, Any], Tensor], Answer]] = {
    "read": read,
    "transformers": read_by_transformers,
    "quantise": quantise,
}


def main(path: str) -> None:
    """Do every job; a failure is an answer like others."""
    jobs = json.loads(Path(path).read_text(encoding="utf-8"))
    for job in jobs:
        ids = load_file(job["ids"])["token_ids"]
        reason = ""
        try:
            save_file(ACTIONS[job["action"]](job, ids), job["answer"])
        except Exception as error:  # one failing job must not hide the others' answers
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}"
        Path(job["answer"]).with_suffix(".json").write_text(json.dumps({"reason": reason}))
        print(f"[oracle] {job['name']}: {reason or 'done'}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
