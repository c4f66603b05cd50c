"""Opens and checks recordings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from runtime.audio import flac, libav, libsndfile, mpeg, ogg, riff
from runtime.audio.contents import Contents, Damage, between_tags
from runtime.audio.libsndfile import UnknownContentError, open_part
from runtime.audio.recording import BLOCK_S, Audio, Part, check_range
from runtime.audio.samples import samples_part
from runtime.audio.source import BytesSource, FileSource, JoinedSource, Piece, ReadAt, Source, SpooledSource
from runtime.errors import InputError
from runtime.results import AudioInfo

MIN_RATE, MAX_RATE = 1_000, 768_000
ACCEPTED = "wav, flac, ogg, opus and mp3 are read"
# Each is opened for itself.
_MAX_LINKS = 10_000
# A mean magnitude that samples between -1 and 1 never have, and a peak that none of them has by a loud mix.
_INTEGER_MEAN, _LARGE_PEAK = 1.0, 16.0
# Largest magnitudes of the integers that recorders use.
_INTEGER_SCALES = (2.0**15, 2.0**23, 2.0**31)


def open_audio(
    recording: Path | str | bytes | IO[bytes] | Any,
    *,
    rate: int | None = None,
    name: str | None = None,
    accept_damaged: bool = False,
) -> Audio:
    """Check a recording and return it.

    Any format that libsndfile reads, and with the extra `atlasport[av]` those of FFmpeg; 1 to 1024 channels, 1 kHz to
    768 kHz. Streams of a chained Ogg or of joined mp3s follow each other. A file whose header does not tell its length
    for certain is decoded once.

    Parameters
    ----------
    recording : path, bytes, binary file object or array
        A file object is read to its end, into a temporary file (up to 8 GiB). An array has shape [n] or [n, channels];
        floats lie within -1 to 1, integers (8 to 32 bits) within the range of their type. It is not copied.
    rate : int, optional
        Sample rate of an array in Hz.
    name : str, optional
        Stands for it in messages and results, where it is no path.
    accept_damaged : bool
        Read what is there of a damaged file; `info.remark` says what is missing.

    Raises
    ------
    InputError
        It is missing, not a file, not readable, empty, not audio, of a rate out of range, has no frames, or is
        damaged or shorter than its header promises.

    """
    if hasattr(recording, "__array__"):
        return _audio(name or "<array>", [samples_part(recording, rate)], "")
    source = _source(recording, name)
    try:
        parts, remark = _parts(source, accept_damaged=accept_damaged)
        return _audio(source.label, parts, remark)
    except UnknownContentError as error:
        raise _refusal(source.label, f"damaged or other content: {error}") from error
    except (OSError, ValueError) as error:
        raise _refusal(source.label, f"{getattr(error, 'strerror', None) or error}") from error


def _source(recording: Any, name: str | None) -> Source:
    if isinstance(recording, (str, Path)):
        return FileSource(Path(recording))
    if isinstance(recording, (bytes, bytearray, memoryview)):
        return BytesSource(bytes(recording), name or "<bytes>")
    if hasattr(recording, "read"):
        return SpooledSource(recording, name or str(getattr(recording, "name", "<stream>")))
    raise InputError(
        f"expected a path, bytes, a binary file object or an array of samples, found {type(recording).__name__}"
    )


def _parts(source: Source, *, accept_damaged: bool) -> tuple[list[Part], str]:
    """Return the parts that decoders read, and a remark.

    Raises
    ------
    InputError
        The file is damaged, and that is not accepted, or cannot be read at all.

    """
    with source.open() as (size, read_at):
        if not size:
            raise _refusal(source.label, "an empty file")
        start, stop = between_tags(size, read_at)
        contents = _contents(start, stop, read_at)
        _check(source, contents.damage, accept_damaged=accept_damaged or not contents.links)
        if not contents.links:
            raise _refusal(source.label, f"a damaged file: {contents.damage}; nothing can be read")
        if len(contents.links) > _MAX_LINKS:
            raise _refusal(source.label, f"{len(contents.links)} streams in one file ({_MAX_LINKS} are read)")
        try:
            return _decoded(source, contents, accept_damaged=accept_damaged)
        except UnknownContentError as error:
            unknown = str(error)
        loose = None if libav.knows(read_at(start, libav.HEAD)) else mpeg.inspect(start, stop, read_at, junk=True)
        if loose is not None:
            _check(source, loose.damage, accept_damaged=accept_damaged)
            try:
                return _decoded(source, loose, accept_damaged=accept_damaged)
            except UnknownContentError as error:
                unknown = str(error)
    if contents.damage:
        unknown = f"{contents.damage} ({unknown})"
    parts, damage, remark = libav.open_parts(source, contents, unknown)
    if "malformed" in unknown:  # a format that libsndfile knows
        damage = damage or Damage(unknown, sum(part.frames / part.rate for part in parts), None)
    damage = contents.damage or damage
    _check(source, damage, accept_damaged=accept_damaged)
    return list(parts), _remark(damage, parts) or remark


def _contents(start: int, stop: int, read_at: ReadAt) -> Contents:
    """Look at the structure of a file."""
    magic = read_at(start, 12)
    whole: tuple[Piece, ...] = ((start, stop),)
    if magic.startswith(b"OggS"):
        return ogg.inspect(start, stop, read_at)
    if magic.startswith((b"RIFF", b"RIFX", b"RF64")) and magic.endswith(b"WAVE"):
        return riff.inspect(start, stop, read_at)
    return mpeg.inspect(start, stop, read_at) or Contents((whole,))


def _decoded(source: Source, contents: Contents, *, accept_damaged: bool) -> tuple[list[Part], str]:
    """Open libsndfile's decoders; those of damaged stretches read what can be decoded."""
    damage = contents.damage
    if damage is None:
        parts = [open_part(source, pieces, decode=accept_damaged) for pieces in contents.links]
        damage = next((part.damage for part in parts if part.damage), None)
        _check(source, damage, accept_damaged=accept_damaged)
    if damage is None:
        return list(parts), contents.remark
    parts, share = _damaged(source, contents)
    return list(parts), _remark(damage, parts, share)


def _damaged(source: Source, contents: Contents) -> tuple[list[libsndfile.Part], float]:
    """Open what can be opened of damaged stretches; return the share that is there where silence fills the rest."""
    parts: list[libsndfile.Part] = []
    kept, last = 1.0, None
    for pieces in contents.links:
        joined = JoinedSource(source, pieces)
        with joined.open() as (size, read_at):
            survivors: tuple[Piece, ...] = ((0, size),)
            if read_at(0, 4) == b"fLaC":
                survivors, share = flac.whole_frames(0, size, read_at)
                kept = min(kept, share)
        try:
            parts.append(open_part(joined, survivors, tolerant=True))
        except UnknownContentError as error:
            last = error
    if last and not parts:
        raise last
    return parts, kept


def _check(source: Source, damage: Damage | None, *, accept_damaged: bool) -> None:
    if damage and not accept_damaged:
        raise _refusal(source.label, f"a {damage.refusal}")


def _remark(damage: Damage | None, parts: Sequence[Part], share: float = 1.0) -> str:
    """Say what is missing, by what was decoded, of which `share` was there and silence stands in for the rest."""
    if damage is None:
        return ""
    decoded = sum(part.frames / part.rate for part in parts)
    found = share * decoded
    missing = decoded - found if share < 1.0 else None
    if damage.missing_s is not None:
        missing = max(decoded, damage.found_s + damage.missing_s) - found
    return f"damaged: {Damage(damage.what, found, missing)}"


def _audio(label: str, parts: Sequence[Part], remark: str) -> Audio:
    parts = tuple(part for part in parts if part.frames)
    if not parts:
        raise _refusal(label, "a header with no samples behind it")
    for part in parts:
        if not MIN_RATE <= part.rate <= MAX_RATE:
            raise _refusal(label, f"a sample rate of {part.rate} Hz ({MIN_RATE} to {MAX_RATE} Hz are read)")
    rate = parts[0].rate
    duration = sum(part.frames / part.rate for part in parts)
    frames = parts[0].frames if len(parts) == 1 else round(duration * rate)
    scale, said = _scale(label, parts)
    remark = ", ".join(filter(None, (remark, said)))
    # Results are text; the bytes of a name need not be.
    shown = label.encode("utf-8", "backslashreplace").decode()
    return Audio(Path(label), AudioInfo(shown, duration, rate, remark), frames, parts, scale)


def _scale(label: str, parts: Sequence[Part]) -> tuple[float, str]:
    """Return what brings samples into -1 to 1, and a remark where floats are at the scale of integers."""
    peak, total, count = 0.0, 0.0, 0
    for part in parts:
        if not getattr(part, "floats", False):
            continue
        at = 0
        for block in part.read(0, part.frames, max(1, int(BLOCK_S * part.rate))):
            peak = max(peak, check_range(label, block, at / part.rate))
            total += float(abs(block).mean(dtype=float)) * len(block)
            count += len(block)
            at += len(block)
    if peak <= _LARGE_PEAK:
        return 1.0, ""
    if total / count < _INTEGER_MEAN:
        raise _refusal(label, f"floats of which few lie outside of -1 to 1, the largest at {peak:g}; cut those")
    full = next(scale for scale in _INTEGER_SCALES if peak <= scale)
    return 1 / full, f"floats up to {peak:g} were divided by {full:.0f}"


def _refusal(label: str, found: str) -> InputError:
    return InputError(f"{label}: expected a recording ({ACCEPTED}), found {found}")
