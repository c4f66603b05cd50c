"""The pocket models: tiny, trained on synthetic speech only, shipped with the repository."""
