"""Reads recordings in blocks: mono, float32, at the model's rate; memory does not grow with the file.

`opening` looks at a file's structure (`ogg`, `riff`, `mpeg`, `flac`: what is there, what is missing) before a decoder
(`libsndfile`, `libav`) reads it: decoders pass over what is damaged without a word.
"""

from runtime.audio.opening import MAX_RATE, MIN_RATE, open_audio
from runtime.audio.recording import MAX_AMPLITUDE, Audio, SampleBuffer

__all__ = ["MAX_AMPLITUDE", "MAX_RATE", "MIN_RATE", "Audio", "SampleBuffer", "open_audio"]
