"""What a Cnn8Rnn artifact's manifest says of the network, its front-end and how to run a long recording."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

FRONTEND, GATES, RECURRENCE, HEAD = "frontend", "gates", "recurrence", "head"  # the graphs' names


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cnn8RnnDims(_Frozen):
    """The whole description of the network.

    `n_channels_1` to `n_channels_4` are the convolution blocks' channels, `n_fc` the features per frame that enter the
    GRU, `n_hidden` its units per direction.
    """

    n_mels: int
    n_channels_1: int
    n_channels_2: int
    n_channels_3: int
    n_channels_4: int
    n_fc: int
    n_hidden: int
    n_classes: int


class Cnn8RnnFrontend(_Frozen):
    """The log-mel front-end: rates and frequencies in Hz, lengths in samples."""

    sample_rate: int = Field(default=32000, gt=0)
    n_fft: int = Field(default=1024, gt=0)
    hop_length: int = Field(default=320, gt=0)
    n_mels: int = Field(default=64, gt=0)
    f_min: float = 50.0
    f_max: float = 14000.0


class Cnn8RnnSettings(_Frozen):
    """Class names, time resolution, and the windows of a long recording.

    `classes_file` has one label a line, in the order of the logits. One score covers `frames_per_score` frames: 40 ms.
    A recording of more than `window_frames` is run in windows of that length, in which the scores of the outer
    `context_frames` at inner edges are dropped: what the convolutions and the GRU lack there is forgotten by then
    (sed-pocket, largest difference of a score from one run over the whole: 0.0074 with 2 s, 2e-5 with 4 s).
    """

    classes_file: str = "classes.txt"
    frames_per_score: int = Field(default=4, gt=0)
    window_frames: int = Field(default=6400, gt=0)
    context_frames: int = Field(default=400, gt=0)

    @model_validator(mode="after")
    def _whole_scores(self) -> Cnn8RnnSettings:
        per_score = self.frames_per_score
        whole = self.window_frames % per_score == 0 and self.context_frames % per_score == 0
        if not whole or self.window_frames <= 2 * self.context_frames:
            raise ValueError(
                f"expected window_frames and context_frames divisible by {per_score} and a window longer than two "
                f"contexts, found {self.window_frames} and {self.context_frames}"
            )
        return self
