"""Parakeet-CTC: from NeMo or transformers checkpoints to graphs."""
