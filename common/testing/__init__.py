"""What tests of every stage share: tiny checkpoints, the Hugging Face oracle, strategies."""
