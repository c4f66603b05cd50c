"""Whisper: audio to text through an artifact's graphs."""
