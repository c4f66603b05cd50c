"""What to do with a recording: what the command line's options set, and what a manifest's recordings keep."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from runtime.families.granite_speech.languages import language_code
from runtime.options import Flag
from runtime.vad.options import SpeechOptions

Task = Literal["transcribe", "punctuate", "translate"]

# Fast speech has 6 tokens a second in European languages, and more in Japanese. An answer to a prompt of one's own may
# be longer than what it is about.
TOKENS_PER_S, LEAST_TOKENS = 12, 200


class GraniteOptions(SpeechOptions):
    """Options of one recognition.

    Attributes
    ----------
    task : {"transcribe", "punctuate", "translate"}
        Text as spoken in lower case, the same with punctuation and capitals, or in the language `to`. Italian and
        Mandarin are translations of English speech.
    to : str or None
        Language to translate to, code or English name.
    punctuation : bool
        Translate with punctuation and capitals.
    keywords : tuple of str
        Names and terms to listen for when transcribing; one text separates them by commas.
    prompt : str or None
        Instruction in one's own words, in place of all of these.
    max_new_tokens : int or None
        At most so many tokens per chunk, the end token included; None: 12 a second and at least 200.
    repetition_guard : bool
        End a chunk's text where it goes round in circles; see `repetition`.
    chunk_s : float
        A longer recording is cut into chunks of at most so many seconds.
    draft : bool
        Give each chunk the encoder's own reading of it too.

    """

    task: Annotated[Task, Flag("Text as spoken, with punctuation, or in the language of --to.")] = "transcribe"
    to: Annotated[str | None, Flag("Language to translate to, code or name (de, french).")] = Field(
        default=None, validate_default=True
    )
    punctuation: Annotated[bool, Flag("Translate with punctuation and capitals.")] = False
    keywords: Annotated[tuple[str, ...], Flag("Names and terms to listen for, with commas between them.")] = ()
    prompt: Annotated[str | None, Flag("What to do, in your words.")] = None
    max_new_tokens: Annotated[int | None, Flag("At most so many in a chunk.", unit="tokens")] = Field(
        default=None, ge=1
    )
    repetition_guard: Annotated[bool, Flag("End a chunk's text where it goes round in circles. Default: on.")] = True
    chunk_s: Annotated[float, Field(ge=1, allow_inf_nan=False), Flag("Longest chunk.", unit="seconds")] = 30.0
    draft: Annotated[bool, Flag("Give the encoder's own reading too, and how sure it is.")] = False

    @field_validator("to")
    @classmethod
    def _translates(cls, to: str | None, info: ValidationInfo) -> str | None:
        translating = info.data.get("task") == "translate"
        if to is None and translating:
            raise ValueError("expected a language to translate to, German or de say")
        if to is not None and not translating:
            raise ValueError("expected the task translate beside a language to translate to")
        return to and language_code(to)

    @field_validator("punctuation")
    @classmethod
    def _of_a_translation(cls, punctuation: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - pydantic's
        if punctuation and info.data.get("task") != "translate":
            raise ValueError("expected the task translate; to transcribe with punctuation, use the task punctuate")
        return punctuation

    @field_validator("keywords", mode="before")
    @classmethod
    def _separate(cls, keywords: Any) -> Any:
        parts = keywords.split(",") if isinstance(keywords, str) else keywords
        if isinstance(parts, (list, tuple)) and all(isinstance(part, str) for part in parts):
            parts = tuple(" ".join(part.split()) for part in parts)
            return tuple(part for part in parts if part)
        return keywords

    @field_validator("keywords")
    @classmethod
    def _of_a_transcript(cls, keywords: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if keywords and info.data.get("task") != "transcribe":
            raise ValueError("expected the task transcribe; say keywords of another task in a prompt")
        return keywords

    @field_validator("prompt")
    @classmethod
    def _alone(cls, prompt: str | None, info: ValidationInfo) -> str | None:
        if prompt is None:
            return None
        if not prompt.strip():
            raise ValueError("expected an instruction")
        others = {"task": "transcribe", "to": None, "punctuation": False, "keywords": ()}
        given = [name for name, default in others.items() if info.data.get(name, default) != default]
        if given:
            raise ValueError(f"expected a prompt without {given[0]}; say it in the prompt")
        return prompt.strip()
