"""Parakeet-TDT: audio to text with times through an artifact's graphs.

`recognizer` opens an artifact, `transducer` runs its graphs, `search` finds the tokens, `timestamps` their times.
"""
