"""Parakeet-TDT: from NeMo or transformers checkpoints to graphs."""
