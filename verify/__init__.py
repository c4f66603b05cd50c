"""Proves that an artifact's graphs agree with their golden outputs, times them, reports."""
