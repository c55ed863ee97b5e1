"""``make gptq-oracle``: this project's GPTQ files against GPTQModel and transformers, both ways."""
