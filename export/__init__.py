"""Build host: a checkpoint becomes graphs, golden outputs and a manifest."""
