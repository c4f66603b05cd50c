"""Options of every family for speech: those of silero's VAD, by silero's names."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from runtime.options import Flag, SubtitleOptions

Probability = Annotated[float, Field(gt=0, lt=1)]
Milliseconds = Annotated[int, Field(ge=0, le=3_600_000)]


class SpeechOptions(SubtitleOptions):
    """Options of a recognition of speech.

    Attributes
    ----------
    vad : bool or None
        Recognise only what silero's VAD takes for speech, as if the rest were cut out of the recording. None: where
        the artifact has it.
    vad_threshold : float
        Speech begins where its probability is as high as this.
    vad_neg_threshold : float or None
        It ends where the probability is below this; None: 0.15 below `vad_threshold`, 0.01 at least.
    vad_min_speech_duration_ms : int
        Shorter speech is none.
    vad_max_speech_duration_s : float
        Longer speech is split in its longest pause, which is not recognised then.
    vad_min_silence_duration_ms : int
        Speech goes on over shorter pauses.
    vad_speech_pad_ms : int
        So much is recognised around speech, too; half of the pause at most.

    """

    vad: Annotated[bool | None, Flag("Recognise only what is speech. Default: where the artifact has a VAD.")] = None
    vad_threshold: Annotated[Probability, Flag("Probability at which speech begins.")] = 0.5
    vad_neg_threshold: Annotated[
        Probability | None, Flag("Probability below which it ends. Default: 0.15 below the threshold.")
    ] = None
    vad_min_speech_duration_ms: Annotated[Milliseconds, Flag("Shorter speech is none.", unit="ms")] = 0
    vad_max_speech_duration_s: Annotated[
        float,
        Field(gt=0),
        Flag("Longer speech is split in a pause.", "--vad-max-speech-duration-s", "seconds"),
    ] = math.inf
    vad_min_silence_duration_ms: Annotated[Milliseconds, Flag("Shorter pauses are kept.", unit="ms")] = 2000
    vad_speech_pad_ms: Annotated[Milliseconds, Flag("Kept around speech.", unit="ms")] = 400
