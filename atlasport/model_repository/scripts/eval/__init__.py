"""Its evaluation scripts."""
