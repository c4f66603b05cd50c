"""Cnn8Rnn: modules, graphs, checkpoints and golden cases."""
