"""Scripts that are copied into a model repository."""
