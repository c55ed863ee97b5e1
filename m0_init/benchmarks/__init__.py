"""What loading a checkpoint costs: time, memory and bytes, beside transformers."""
