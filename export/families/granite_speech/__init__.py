"""Granite Speech: from a checkpoint to graphs."""
