"""Parakeet-CTC: audio to text with times, of FastConformer-CTC and of the CTC head of hybrid checkpoints."""
