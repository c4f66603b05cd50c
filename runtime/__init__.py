"""The box: opens an artifact, runs its graphs on an engine, turns audio into text."""
