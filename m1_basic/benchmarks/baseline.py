"""The other side of M1's comparison: ``transformers.generate`` at its usual best settings."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from common.testing.checkpoints import quiet_transformers


class TransformersGenerate:
    """Greedy generation by transformers: dynamic KV cache, inference mode."""

    def __init__(
        self, folder: Path, dtype: torch.dtype, device: str, attention: str = "sdpa"
    ) -> None:
        """Load the checkpoint.

        Args:
            folder: A model folder.
            dtype: Element type of weights and KV.
            device: ``cpu``, ``cuda`` or ``cuda:N``.
            attention: ``sdpa`` is what users get; ``eager`` writes the score matrix, as M1 does.
        """
        transformers = quiet_transformers()
        self.device = device
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, attn_implementation=attention, local_files_only=True
        )
        self.model.to(device).eval()
        self._config = transformers.GenerationConfig(
            do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0
        )
        self.model.generation_config = transformers.GenerationConfig()

    def weight_bytes(self) -> int:
        """Bytes of the parameters, each storage counted once."""
        return sum(parameter.nbytes for parameter in self.model.parameters())

    @torch.inference_mode()
    def token_times(self, prompt: list[int], max_tokens: int) -> list[float]:
        """When each of ``max_tokens`` greedy tokens was on the host; EOS does not stop them.

        Args:
            prompt: Prompt ids.
            max_tokens: Tokens to generate.

        Returns:
            ``time.perf_counter()`` seconds.
        """
        clock = _Clock()
        self._generate([prompt], max_tokens, clock)
        return clock.times

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        """``max_tokens`` greedy tokens after each of some equally long prompts, in one batch."""
        rows: list[list[int]] = self._generate(prompts, max_tokens, None).tolist()
        return [row[len(prompts[0]) :] for row in rows]

    def _generate(
        self, prompts: list[list[int]], max_tokens: int, streamer: _Clock | None
    ) -> torch.Tensor:
        ids = torch.tensor(prompts, device=self.device)
        self._config.max_new_tokens = max_tokens
        output: torch.Tensor = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=self._config,
            streamer=streamer,
        )
        return output


class _Clock:
    """A streamer of transformers that only looks at the time; the first call brings the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._prompt_seen = False

    def put(self, _value: torch.Tensor) -> None:
        """Called with the prompt, then with each token."""
        if self._prompt_seen:
            self.times.append(time.perf_counter())
        self._prompt_seen = True

    def end(self) -> None:
        """Called after the last token."""
