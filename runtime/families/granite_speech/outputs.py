"""Transcripts as files; see `runtime.transcript_files`."""

from __future__ import annotations

from runtime.transcript_files import transcript_formats

FORMATS = transcript_formats()
