"""Whisper: modules, graphs, checkpoints and golden cases."""
