"""Opens a Parakeet artifact for transcription."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from runtime.errors import InputError
from runtime.families.parakeet_tdt.hotwords import HotwordChooser, hotword_tree
from runtime.families.parakeet_tdt.options import ParakeetOptions
from runtime.families.parakeet_tdt.search import Chooser, Emission
from runtime.families.parakeet_tdt.timestamps import timed_tokens
from runtime.families.parakeet_tdt.transducer import ParakeetTransducer
from runtime.families.parakeet_tdt.windows import search_windows
from runtime.fastconformer.encoder import Encoded
from runtime.fastconformer.recognizer import FastConformerRecognizer, Search
from runtime.fastconformer.transcript import TimedToken
from runtime.fastconformer.windows import Window


@dataclass(frozen=True)
class _TransducerSearch:
    """The search for a batch of recordings, each of whose tokens its own chooser chooses."""

    model: ParakeetTransducer
    device_steps: int | None
    choosers: Sequence[Chooser | None]

    def whole(self, encoded: Encoded, places: Sequence[int]) -> list[list[Emission]]:
        """See `Search`."""
        return self.model.decode(encoded, self.device_steps, [self.choosers[place] for place in places])

    def windows(self, windows: Iterable[Window], place: int) -> Iterator[tuple[list[Emission], int]]:
        """See `Search`."""
        return search_windows(self.model, windows, self.device_steps, self.choosers[place])


class ParakeetRecognizer(FastConformerRecognizer[ParakeetOptions, Emission]):
    """Transcribes recordings with one opened artifact."""

    options_type, model_type = ParakeetOptions, ParakeetTransducer
    model: ParakeetTransducer

    def search(self, n_recordings: int, options: ParakeetOptions) -> Search[Emission]:
        """Return the transducer's search, by hotwords where there are some; see `FastConformerRecognizer`."""
        tree = hotword_tree(options.hotwords, options.hotword_weight, self.tokenizer.encode, self.tokenizer.unknown)
        choosers = [HotwordChooser(tree, self.model.dims.blank) if tree else None for _ in range(n_recordings)]
        return _TransducerSearch(self.model, self._device_steps(options), choosers)

    def timed_tokens(self, found: Sequence[Emission], options: ParakeetOptions) -> list[TimedToken]:
        """Return the tokens of a recording; see runtime/families/parakeet_tdt/timestamps.py."""
        return timed_tokens(found, self.tokenizer, options.confidence)

    def _device_steps(self, options: ParakeetOptions) -> int | None:
        """Return the steps of one call of the search on the device, None for the search on the host."""
        known = self.model.settings.decode_steps
        if options.decode_steps is not None and options.decode_steps not in known:
            listing = ", ".join(map(str, known)) or "none"
            raise InputError(
                f"--decode-steps: expected one that the artifact has ({listing}), found {options.decode_steps}"
            )
        if options.decode == "host":
            return None
        if not known:
            raise InputError("--decode: the artifact has no graph for the search on the device; use host")
        return options.decode_steps or max(known)
