"""A tokenizer whose token ids are bytes, for tiny random checkpoints.

Id ``b`` is the byte ``b`` for ``b < 256``, so a test can read ids at sight (``encode("A")`` is
``[65]``) and any random model speaks it. Behind the bytes stand three special tokens, then as many
unused ones as the checkpoint's vocabulary needs.
"""

from __future__ import annotations

import json
from pathlib import Path

BYTE_SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<pad>")
"""Their ids are 256, 257 and 258."""

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""ChatML, reduced to role and content."""


def write_byte_tokenizer(
    folder: str | Path, vocab_size: int = 256 + len(BYTE_SPECIAL_TOKENS)
) -> Path:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` of a byte tokenizer.

    Args:
        folder: A model folder; it is created if need be.
        vocab_size: The model's vocabulary, at least 259. Ids behind the special tokens become
            special tokens ``<|unused_i|>``, so that every id of the model decodes.

    Returns:
        The folder.

    Raises:
        ValueError: ``vocab_size`` is below 259.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    unused = vocab_size - 256 - len(BYTE_SPECIAL_TOKENS)
    if unused < 0:
        raise ValueError(f"vocab_size must be at least 259 (bytes and specials), got {vocab_size}")
    tokenizer = Tokenizer(models.BPE(vocab=_byte_vocabulary(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = [*BYTE_SPECIAL_TOKENS, *(f"<|unused_{i}|>" for i in range(unused))]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])

    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    start, end, pad = BYTE_SPECIAL_TOKENS
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": end,
        "pad_token": pad,
        "additional_special_tokens": [start],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(config, indent=2) + "\n"
    (out / "tokenizer_config.json").write_text(text, encoding="utf-8")
    return out


def byte_symbols() -> list[str]:
    """The printable character that byte-level BPE writes for each byte, by byte value.

    GPT-2's table: printable Latin-1 stands for itself, the other bytes for U+0100 and following.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    symbols, shifted = [], 0
    for byte in range(256):
        if byte in printable:
            symbols.append(chr(byte))
        else:
            symbols.append(chr(0x100 + shifted))
            shifted += 1
    return symbols


def _byte_vocabulary() -> dict[str, int]:
    return {symbol: byte for byte, symbol in enumerate(byte_symbols())}
