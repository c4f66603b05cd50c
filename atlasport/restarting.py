"""A recogniser that is opened anew where its device fails."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from runtime.errors import DeviceFailedError

if TYPE_CHECKING:
    from runtime.audio import Audio
    from runtime.engines.base import Engine
    from runtime.family import BatchRecognizer, Progress, Recognizer, StreamingRecognizer
    from runtime.options import RecognitionOptions
    from runtime.results import Result

_Result = TypeVar("_Result")


class RestartingRecognizer:
    """Begins a recording again with a fresh recogniser, a fresh process that is, where the device failed in it.

    Results of recordings before stay: the device answered for each at its end.

    Parameters
    ----------
    open_fresh : callable
        Opens the recogniser.
    restarts : int
        How often at most, over all recordings.

    Raises
    ------
    DeviceFailedError
        The device failed once more than that.

    """

    def __init__(self, open_fresh: Callable[[], Recognizer[Any, Result]], restarts: int) -> None:
        self._open = open_fresh
        self._left = restarts
        self._recognizer: Recognizer[Any, Result] | None = None
        self._use(lambda _: None)

    @property
    def engine(self) -> Engine:
        """The open recogniser's; what one before it has recorded is lost."""
        return self._use(lambda recognizer: recognizer.engine)

    def recognize(
        self,
        audio: Audio,
        options: RecognitionOptions,
        on_progress: Progress | None,
        on_text: Callable[[str], object] | None = None,
    ) -> Result:
        """Return what is heard in a recording; see `Recognizer`, and for `on_text` `StreamingRecognizer`."""
        if on_text is None:
            return self._use(lambda recognizer: recognizer.recognize(audio, options, on_progress))
        return self._use(
            lambda recognizer: cast("StreamingRecognizer[Any, Result]", recognizer).recognize(
                audio, options, on_progress, on_text
            )
        )

    def recognize_batch(self, audios: Sequence[Audio], options: RecognitionOptions) -> Sequence[Result]:
        """Return what is heard in several recordings at once; see `BatchRecognizer`."""
        return self._use(
            lambda recognizer: cast("BatchRecognizer[Any, Result]", recognizer).recognize_batch(audios, options)
        )

    def _use(self, use: Callable[[Recognizer[Any, Result]], _Result]) -> _Result:
        try:
            self._recognizer = self._recognizer or self._open()
            return use(self._recognizer)
        except DeviceFailedError as error:
            if not self._left:
                raise
            sys.stderr.write(f"atlasport: {error}\natlasport: starts again\n")
        self._left -= 1
        self._recognizer = None
        return self._use(use)
