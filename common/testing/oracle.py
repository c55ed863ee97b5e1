"""What Hugging Face transformers computes for a checkpoint: the reference of every stage.

The attention implementation is named, never left to a default that may change. Nothing here is
tolerant: ids are compared as they are, and prompts whose ids could flip by rounding are not used
(:func:`margin_prompts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from common.testing.checkpoints import quiet_transformers

Attention = Literal["eager", "sdpa"]

MIN_MARGIN = 1e-3
"""Least distance between the two largest logits that float32 rounding cannot bridge."""


@dataclass(frozen=True)
class OracleStates:
    """What one forward pass over a prompt leaves behind.

    Attributes:
        hidden: The residual stream ``[num_tokens, hidden_size]``, after the embedding (entry 0)
            and after every layer, before the final norm.
        logits: ``[num_tokens, vocab_size]``.
    """

    hidden: tuple[Tensor, ...]
    logits: Tensor


class HFOracle:
    """A checkpoint run by transformers on the CPU.

    Attributes:
        model: The transformers model, in evaluation mode.
    """

    def __init__(
        self, folder: str | Path, dtype: str = "float32", attention: Attention = "eager"
    ) -> None:
        """Load the checkpoint.

        Args:
            folder: A model folder.
            dtype: Element type to run in.
            attention: transformers' implementation.
        """
        self.model: Any = (
            quiet_transformers()
            .AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=getattr(torch, dtype),
                attn_implementation=attention,
                local_files_only=True,
            )
            .eval()
        )
        assert self.model.config._attn_implementation == attention

    @torch.inference_mode()
    def hidden_states(self, ids: Sequence[int]) -> OracleStates:
        """Run a prompt once and keep the residual stream after every layer.

        Hooks on the modules, because the ``output_hidden_states`` of transformers replaces the
        last layer's output by the normed one.
        """
        kept: list[Tensor] = []

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            kept.append(value[0].clone())

        body = self.model.model
        hooks = [m.register_forward_hook(keep) for m in (body.embed_tokens, *body.layers)]
        try:
            output = self.model(input_ids=torch.tensor([list(ids)]), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return OracleStates(tuple(kept), output.logits[0])

    def greedy(
        self,
        ids: Sequence[int],
        n: int,
        eos: Sequence[int] = (),
        repetition_penalty: float = 1.0,
    ) -> list[int]:
        """The ``n`` most likely ids after a prompt, one after the other.

        Args:
            ids: The prompt.
            n: New tokens at most.
            eos: Ids that end the text (kept as the last id); none by default.
            repetition_penalty: 1 changes nothing.
        """
        options = {"do_sample": False, "repetition_penalty": repetition_penalty}
        return self._generate([ids], n, eos, **options)[0]

    def sample(
        self,
        ids: Sequence[int],
        n: int,
        seed: int,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        eos: Sequence[int] = (),
    ) -> list[int]:
        """``n`` ids drawn with ``torch.manual_seed(seed)`` and ``generate(do_sample=True)``.

        Args:
            ids: The prompt.
            n: New tokens at most.
            seed: Seed of torch's global generator, restored afterwards.
            temperature: Divides the logits.
            top_k: Keep the k largest logits; 0 keeps all.
            top_p: Keep the smallest set of tokens that reaches p.
            min_p: Drop tokens less likely than this share of the likeliest; 0 keeps all.
            repetition_penalty: 1 changes nothing.
            eos: Ids that end the text (kept as the last id); none by default.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._generate(
                [ids],
                n,
                eos,
                do_sample=True,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p or None,
                repetition_penalty=repetition_penalty,
            )[0]

    def min_margin(self, ids: Sequence[int], n: int) -> float:
        """Smallest distance between the two largest logits along ``n`` greedy steps."""
        return self.min_margins([ids], n)[0]

    def min_margins(self, prompts: Sequence[Sequence[int]], n: int) -> list[float]:
        """:meth:`min_margin` of several prompts of one length, computed as a batch."""
        output = self._run(prompts, n, (), do_sample=False, output_logits=True)
        best = torch.stack(output.logits).topk(2, dim=-1).values  # [n, prompts, 2]
        return [float(m) for m in (best[..., 0] - best[..., 1]).amin(dim=0)]

    def _generate(
        self, prompts: Sequence[Sequence[int]], n: int, eos: Sequence[int], **options: Any
    ) -> list[list[int]]:
        output = self._run(prompts, n, eos, **options)
        length = len(prompts[0])
        return [row[length:].tolist() for row in output.sequences]

    @torch.inference_mode()
    def _run(
        self, prompts: Sequence[Sequence[int]], n: int, eos: Sequence[int], **options: Any
    ) -> Any:
        make_config = quiet_transformers().GenerationConfig
        config = make_config(
            max_new_tokens=n,
            eos_token_id=list(eos) or None,
            pad_token_id=0,
            use_cache=True,
            return_dict_in_generate=True,
            **options,
        )
        # generate() fills what the given config leaves open from the checkpoint's own one (its
        # EOS, its top_k): a bare config there keeps the oracle free of it.
        self.model.generation_config = make_config()
        ids = torch.tensor([list(prompt) for prompt in prompts])
        return self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
        )


def margin_prompts(
    oracle: HFOracle,
    count: int,
    lengths: Sequence[int],
    new_tokens: int,
    vocab: int,
    seed: int = 0,
    min_margin: float = MIN_MARGIN,
) -> list[list[int]]:
    """Random prompts whose greedy ids no rounding of float32 can change.

    Float32 products differ in their last bits between batch shapes, so an id is only comparable
    where the best logit leads by more than that. Candidates are drawn until ``count`` of them lead
    by ``min_margin`` at every step.

    Args:
        oracle: The checkpoint.
        count: Prompts to find.
        lengths: Their lengths, used in turn.
        new_tokens: Greedy steps that must be safe.
        vocab: Ids are drawn from ``[0, vocab)``.
        seed: Seed of the draw.
        min_margin: Least lead.

    Returns:
        ``count`` prompts; prompt i has length ``lengths[i % len(lengths)]``.

    Raises:
        ValueError: Hardly any candidate is safe: the checkpoint's logits are too much alike.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[list[int]] = []
    for index in range(count):
        length = lengths[index % len(lengths)]
        found.append(_safe_prompt(oracle, length, new_tokens, vocab, generator, min_margin))
    return found


def _safe_prompt(
    oracle: HFOracle,
    length: int,
    new_tokens: int,
    vocab: int,
    generator: torch.Generator,
    min_margin: float,
) -> list[int]:
    """One prompt of ``length`` tokens that leads by ``min_margin`` all along."""
    for _ in range(8):
        candidates = torch.randint(vocab, (4, length), generator=generator).tolist()
        margins = oracle.min_margins(candidates, new_tokens)
        best = max(range(len(candidates)), key=margins.__getitem__)
        if margins[best] >= min_margin:
            return [int(token) for token in candidates[best]]
    raise ValueError(
        f"no prompt of {length} tokens keeps a margin of {min_margin} over {new_tokens} tokens"
    )
