"""One decoder for Qwen3, Qwen2 and Llama, and the seams at which later stages swap its parts."""
