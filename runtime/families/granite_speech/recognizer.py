"""Opens a Granite Speech artifact for transcription and translation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

from runtime.artifact import Artifact
from runtime.audio import Audio
from runtime.engines.base import Engine
from runtime.families.granite_speech.chunks import Chunk, TextJoiner, cut_chunks, join_texts
from runtime.families.granite_speech.ctc import ctc_draft, require_characters
from runtime.families.granite_speech.features import log_mel, n_frames
from runtime.families.granite_speech.options import LEAST_TOKENS, TOKENS_PER_S, GraniteOptions
from runtime.families.granite_speech.prompts import instruction, prompt_text
from runtime.families.granite_speech.settings import GraniteDims, GraniteFrontend, GraniteSettings
from runtime.families.granite_speech.speech_lm import Decoding, Encoded, GraniteSpeechLM
from runtime.families.granite_speech.tokenizer import GraniteTokenizer
from runtime.family import OnSegment, Progress, StreamingRecognizer, in_turn
from runtime.repetition import loop_start
from runtime.results import Draft, Segment, Transcript
from runtime.vad.heard import Heard, listen
from runtime.vad.silero import open_vad

DEFAULT_OPTIONS = GraniteOptions()
_NOTES = {
    "length": "ended at the most tokens allowed",
    "repetition": "ended in a loop",
    "silence": "silent, not decoded",
}


class GraniteRecognizer(StreamingRecognizer[GraniteOptions, Transcript]):
    """Transcribes or translates recordings with one opened artifact."""

    options_type = GraniteOptions

    def __init__(self, artifact: Artifact, engine: Engine, load_s: float | None = None) -> None:
        super().__init__(artifact, engine, load_s)
        self.dims = artifact.part("dims", GraniteDims)
        self.frontend = artifact.part("frontend", GraniteFrontend)
        self.settings = artifact.part("settings", GraniteSettings)
        file = artifact.file(self.settings.tokenizer_file)
        self.tokenizer = GraniteTokenizer(file, self.dims.n_vocab, self.settings.audio_token)
        self.model = GraniteSpeechLM(engine, self._content.graphs, self.dims, self.settings)
        self._vad = open_vad(artifact)

    @in_turn
    def recognize(
        self,
        audio: Audio,
        options: GraniteOptions = DEFAULT_OPTIONS,
        on_progress: Progress | None = None,
        on_text: Callable[[str], object] | None = None,
        *,
        on_segment: OnSegment | None = None,
    ) -> Transcript:
        """Return what was asked of a recording, of which each chunk is asked by itself; see `Recognizer`.

        The pieces that `on_text` is given are the result's text together, but where a chunk ended in a loop: all but
        its first round is then dropped from the result.
        """
        started = time.perf_counter()
        self.model.timer.take()
        instruct = instruction(options)
        self.tokenizer.refuse_special(instruct)
        if options.draft:
            require_characters(self.settings.ctc_characters)
        heard = listen(audio, options, self._vad, self.model.timer)
        self._require_room(instruct, min(options.chunk_s, heard.clip_s))
        joiner = None if on_text is None else TextJoiner(on_text)
        segments, steps = [], 0
        for chunk in self._chunks(heard, options) if heard.seconds else ():
            segment, its_steps = self._segment(chunk, instruct, options, joiner)
            segments.append(heard.placed(segment))
            if on_segment is not None:
                on_segment(segments[-1])
            steps += its_steps
            if on_progress is not None:
                on_progress(min(round(segment.end, 6), heard.seconds), heard.seconds)

        timings = self._timings(self.model.timer, started, heard.clip_s)
        tokens_per_s = steps / timings["decode_s"] if timings.get("decode_s") else None
        drafts = [segment.draft for segment in segments if segment.draft is not None]
        return Transcript(
            **self._circumstances(audio, options, timings),
            subtitles=options.subtitles,
            text=join_texts(segment.text for segment in segments),
            language=options.to or "",
            task="prompt" if options.prompt is not None else options.task,
            prompt=instruct,
            segments=tuple(segments),
            draft=join_texts(draft.text for draft in drafts) if drafts else None,
            steps=steps,
            tokens_per_s=tokens_per_s,
            speech=heard.speech,
            remark=_remark(segments, tokens_per_s, drafts),
        )

    def _chunks(self, heard: Heard, options: GraniteOptions) -> Iterator[Chunk]:
        """Return the chunks of what is heard, which is read as they are taken."""
        rate = self.frontend.sample_rate
        return cut_chunks(heard.blocks(rate), rate, options.chunk_s)

    def _segment(
        self, chunk: Chunk, instruct: str, options: GraniteOptions, joiner: TextJoiner | None
    ) -> tuple[Segment, int]:
        """Return what is said in a chunk, in the time of what is heard, and the steps that took."""
        start, end = chunk.start_s, chunk.start_s + len(chunk.samples) / self.frontend.sample_rate
        if chunk.is_silent:
            return Segment(start, end, "", (), finish="silence"), 0
        with self.model.timer.measure("frontend_s", on_device=False):
            features = log_mel(chunk.samples, self.frontend)
        encoded = self.model.encode(features)
        decoding = self.answer(encoded, instruct, options, end - start, joiner)
        text = self.tokenizer.decode(decoding.tokens).strip()
        draft = self._draft(encoded) if options.draft else None
        segment = Segment(start, end, text, decoding.tokens, decoding.avg_logprob, finish=decoding.finish, draft=draft)
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
            return self.model.generate(prompt, encoded, most, guard=guard)
        stream, push = self.tokenizer.stream(), joiner.push
        joiner.begin()
        decoding = self.model.generate(
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
        self.model.room(self._prompt(instruct, self.dims.n_embeds(count)))

    def _draft(self, encoded: Encoded) -> Draft:
        """Return the encoder's own reading."""
        return ctc_draft(self.model.ctc_logits(encoded), self.settings.ctc_characters)


def _remark(segments: Sequence[Segment], tokens_per_s: float | None, drafts: Sequence[Draft]) -> str:
    """Return how fast the text came, whether some of it is missing, and how sure the encoder was of the draft."""
    count = sum(len(segment.tokens) for segment in segments)
    notes = [f"{count} tokens" + ("" if tokens_per_s is None else f", {tokens_per_s:.1f} a second")]
    reasons = [segment.finish for segment in segments]
    for finish, note in _NOTES.items():
        if finish in reasons:
            notes.append(f"{reasons.count(finish)} of {len(reasons)} chunks {note}")
    if n_characters := sum(len(draft.text) for draft in drafts):
        sure = sum((draft.confidence or 0.0) * len(draft.text) for draft in drafts)
        notes.append(f"draft confidence {sure / n_characters:.2f}")
    return "; ".join(notes)
