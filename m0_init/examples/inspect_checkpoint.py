"""Follow a checkpoint from its files to a next token, one step at a time.

    python m0_init/examples/inspect_checkpoint.py
    python m0_init/examples/inspect_checkpoint.py --model Qwen/Qwen3-0.6B

Prints which tensors the files hold, where each of them goes in the model, what the parts cost, and
how the residual stream grows from layer to layer on the way to the next token.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from common.cli_errors import OneLineParser, run
from common.devices import format_bytes
from common.hub import resolve_model
from common.model.weights import checkpoint_modules, safetensors_files
from common.model_config import ModelConfig
from common.model_costs import kv_bytes, kv_crossover_tokens
from m0_init.forward import layer_states
from m0_init.loader import load
from m0_init.memory_plan import parts_of_weights

PROMPT = "The capital of France is"


def main(argv: list[str]) -> int:
    """Walk through one checkpoint. Returns the exit code."""
    parser = OneLineParser(description="Follow a checkpoint from its files to a next token.")
    parser.add_argument("--model", default="smollm2", help="local folder, hub id, or smollm2")
    parser.add_argument("--prompt", default=PROMPT, help="text to continue")
    parser.add_argument("--smoke", action="store_true", help="show fewer layers")
    args = parser.parse_args(argv)
    folder = resolve_model(args.model)
    config = ModelConfig.from_pretrained(folder)

    print(f"1. What {args.model} holds")
    show_tensors(folder, config, num_layers=1 if args.smoke else 2)

    print("\n2. What it costs")
    for name, size in parts_of_weights(config).items():
        print(f"   {name:10} {format_bytes(size):>12}")
    print(f"   a token of KV takes {kv_bytes(config):,} bytes;")
    print(f"   {kv_crossover_tokens(config):,} tokens of it are as large as the weights")

    print("\n3. From a prompt to the next token")
    show_stream(args.model, args.prompt, every=10 if args.smoke else 5)
    return 0


def show_tensors(folder: Path, config: ModelConfig, num_layers: int) -> None:
    """Print the tensors of the first layers, and the module and shard each is copied into."""
    places = checkpoint_modules(config)
    layers = [f"model.layers.{i}." for i in range(num_layers)]
    shown = ("model.embed", "model.norm", "lm_head", *layers)
    for path in safetensors_files(folder):
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            print(f"   {path.name}: {len(names)} tensors")
            for name in (name for name in names if name.startswith(shown)):
                entry = file.get_slice(name)
                shape = " × ".join(map(str, entry.get_shape()))
                module, shard = places.get(name.rpartition(".")[0], ("(skipped)", 0))
                print(f"   {name:48} {shape:14} → {module}, shard {shard}")


def show_stream(model: str, prompt: str, every: int) -> None:
    """Print the size of the residual stream of the last token, and what it predicts."""
    loaded = load(model)
    if loaded.tokenizer is None:
        print("   this checkpoint has no tokenizer")
        return
    ids = loaded.tokenizer.encode(prompt)
    print(f"   {prompt!r} is {len(ids)} tokens: {ids}")
    states = layer_states(loaded.model, ids)
    for index, stream in enumerate(states.hidden):
        if index % every == 0 or index == len(states.hidden) - 1:
            rms = stream[-1].float().pow(2).mean().sqrt().item()
            print(f"   after layer {index:2}: RMS of the last token's stream {rms:8.3f}")
    best = int(states.logits[-1].argmax())
    print(f"   next token: {loaded.tokenizer.token_text(best)!r} (id {best})")


if __name__ == "__main__":
    run(main)
