"""Whisper: audio to text through an artifact's graphs.

`recognizer` opens an artifact, `windows` goes over a recording, `encoder_decoder` holds the decode loop of one window.
"""
