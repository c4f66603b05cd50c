"""Opens a Granite Speech artifact for transcription and translation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

from runtime.artifact import Artifact
from runtime.audio import Audio
from runtime.engines.base import Engine
from runtime.families.granite_speech.chunks import Chunk, TextJoiner, cut_chunks, join_texts
from runtime.families.granite_speech.ctc import Draft, ctc_draft, require_characters
from runtime.families.granite_speech.decoder import Decoding, Encoded, GraniteDecoder
from runtime.families.granite_speech.features import log_mel, n_frames
from runtime.families.granite_speech.options import LEAST_TOKENS, TOKENS_PER_S, GraniteOptions
from runtime.families.granite_speech.prompts import instruction, prompt_text
from runtime.families.granite_speech.repetition import loop_start
from runtime.families.granite_speech.settings import GraniteDims, GraniteFrontend, GraniteSettings
from runtime.families.granite_speech.tokenizer import GraniteTokenizer
from runtime.families.granite_speech.transcript import SpeechSegment, SpeechTranscript

DEFAULT_OPTIONS = GraniteOptions()
# Is told seconds done and seconds in all.
Progress: TypeAlias = Callable[[float, float], object]


class GraniteRecognizer:
    """Transcribes or translates recordings with one opened artifact.

    Parameters
    ----------
    artifact : Artifact
        Of the family "granite_speech".
    engine : Engine
        The artifact's graphs, opened.
    load_s : float or None
        What opening took, in seconds; goes into the timings.

    """

    def __init__(self, artifact: Artifact, engine: Engine, load_s: float | None = None) -> None:
        content = artifact.content
        self._content = content
        self._engine = engine
        self._load_s = load_s
        self.dims = artifact.part("dims", GraniteDims)
        self.frontend = artifact.part("frontend", GraniteFrontend)
        self.settings = artifact.part("settings", GraniteSettings)
        file = artifact.file(self.settings.tokenizer_file)
        self.tokenizer = GraniteTokenizer(file, self.dims.n_vocab, self.settings.audio_token)
        self.decoder = GraniteDecoder(engine, content.graphs, self.dims, self.settings)

    def recognize(
        self,
        audio: Audio,
        options: GraniteOptions = DEFAULT_OPTIONS,
        on_progress: Progress | None = None,
        on_text: Callable[[str], object] | None = None,
    ) -> SpeechTranscript:
        """Return what was asked of a recording of any length.

        Parameters
        ----------
        audio : Audio
            The recording; a longer one is cut into chunks, each of which is asked by itself.
        options : GraniteOptions
            What to do.
        on_progress : callable or None
            Called with seconds done and seconds in all after each chunk.
        on_text : callable or None
            Given the text in pieces as it is made. Together they are the result's, but where a chunk ended in a loop:
            all but its first round is then dropped from the result.

        Raises
        ------
        InputError
            The audio cannot be read, the clip lies behind its end, the prompt is longer than the model's context or
            has a special token in it, or the artifact lacks what an option asks for.
        EnvironmentNotFitError
            The device returned numbers that are not finite.

        """
        started = time.perf_counter()
        self.decoder.watch.take()
        instruct = instruction(options)
        self.tokenizer.refuse_special(instruct)
        if options.draft:
            require_characters(self.settings.ctc_characters)
        start_s, end_s = options.clip or (0.0, None)
        wanted_s = (audio.info.duration_s if end_s is None else min(end_s, audio.info.duration_s)) - start_s
        self._require_room(instruct, min(options.chunk_s, wanted_s))
        joiner = None if on_text is None else TextJoiner(on_text)
        segments, steps = [], 0
        for chunk in self._chunks(audio, options):
            segment, its_steps = self._segment(chunk, start_s, instruct, options, joiner)
            segments.append(segment)
            steps += its_steps
            if on_progress is not None:
                on_progress(min(segment.end - start_s, wanted_s), wanted_s)

        timings = {} if self._load_s is None else {"load_s": self._load_s}
        timings |= self.decoder.watch.take()
        timings["total_s"] = time.perf_counter() - started
        timings["rtf"] = timings["total_s"] / wanted_s
        return SpeechTranscript(
            model=self._content.model,
            variant=self._content.variant,
            device=self._engine.device,
            engine=self._engine.name,
            audio=audio.info,
            text=join_texts(segment.text for segment in segments),
            language=options.to or "",
            task="prompt" if options.prompt is not None else options.task,
            prompt=instruct,
            segments=tuple(segments),
            steps=steps,
            timings=timings,
            simulated=self._engine.probe.facts.simulated,
        )

    def _chunks(self, audio: Audio, options: GraniteOptions) -> Iterator[Chunk]:
        """Return the chunks of a recording, which is read as they are taken."""
        start_s, end_s = options.clip or (0.0, None)
        rate = self.frontend.sample_rate
        return cut_chunks(audio.blocks(rate, start_s, end_s), rate, options.chunk_s)

    def _segment(
        self, chunk: Chunk, start_s: float, instruct: str, options: GraniteOptions, joiner: TextJoiner | None
    ) -> tuple[SpeechSegment, int]:
        """Return what is said in a chunk of a recording that begins at `start_s`, and the steps that took."""
        # To the microsecond: sums of binary fractions leave noise behind.
        start = round(start_s + chunk.start_s, 6)
        end = round(start_s + chunk.start_s + len(chunk.samples) / self.frontend.sample_rate, 6)
        if chunk.is_silent:
            return SpeechSegment(start, end, "", (), None, "silence"), 0
        with self.decoder.watch.measure("frontend_s", on_device=False):
            features = log_mel(chunk.samples, self.frontend)
        encoded = self.decoder.encode(features)
        decoding = self.answer(encoded, instruct, options, end - start, joiner)
        text = self.tokenizer.decode(decoding.tokens).strip()
        draft = self._draft(encoded) if options.draft else None
        segment = SpeechSegment(start, end, text, decoding.tokens, decoding.avg_logprob, decoding.finish, draft)
        return segment, decoding.steps

    def answer(
        self,
        encoded: Encoded,
        instruct: str,
        options: GraniteOptions,
        duration_s: float,
        joiner: TextJoiner | None = None,
    ) -> Decoding:
        """Return what the model says of encoded audio; the text goes to `joiner` as it comes."""
        prompt = self._prompt(instruct, len(encoded.audio_embeds))
        most = options.max_new_tokens or max(LEAST_TOKENS, math.ceil(TOKENS_PER_S * duration_s))
        guard = loop_start if options.repetition_guard else None
        if joiner is None:
            return self.decoder.generate(prompt, encoded, most, guard=guard)
        stream, push = self.tokenizer.stream(), joiner.push
        joiner.begin()
        decoding = self.decoder.generate(
            prompt, encoded, most, guard=guard, on_token=lambda token: push(stream.push(token))
        )
        push(stream.finish())
        return decoding

    def _prompt(self, instruct: str, n_embeds: int) -> tuple[int, ...]:
        """Return the ids of a prompt around so many audio embeddings."""
        return self.tokenizer.encode_prompt(prompt_text(instruct, n_embeds, self.settings))

    def _require_room(self, instruct: str, longest_s: float) -> None:
        """Refuse a prompt whose longest chunk would fill the model's context, before anything is computed."""
        count = n_frames(round(longest_s * self.frontend.sample_rate), self.frontend)
        self.decoder.room(self._prompt(instruct, self.dims.n_embeds(count)))

    def _draft(self, encoded: Encoded) -> Draft:
        """Return the encoder's own reading."""
        return ctc_draft(self.decoder.ctc_logits(encoded), self.settings.ctc_characters)
