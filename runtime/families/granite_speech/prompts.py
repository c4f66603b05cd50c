"""What Granite Speech is asked: the instructions it was trained with, and the text around them."""

from __future__ import annotations

from runtime.families.granite_speech.languages import LANGUAGES
from runtime.families.granite_speech.options import GraniteOptions
from runtime.families.granite_speech.settings import GraniteSettings

_TRANSCRIBE = "can you transcribe the speech into a written format?"
_KEYWORDS = "transcribe the speech to text. Keywords: "
_PUNCTUATION = " with proper punctuation and capitalization"


def instruction(options: GraniteOptions) -> str:
    """Return the instruction for what `options` ask for, in the words of the model's card."""
    if options.prompt is not None:
        return options.prompt
    if options.task == "translate":
        language = LANGUAGES[options.to or ""]
        return f"translate the speech to {language}{_PUNCTUATION if options.punctuation else ''}."
    if options.task == "punctuate":
        return f"transcribe the speech{_PUNCTUATION}."
    return _KEYWORDS + ", ".join(options.keywords) if options.keywords else _TRANSCRIBE


def prompt_text(instruct: str, n_embeds: int, settings: GraniteSettings) -> str:
    """Return the prompt: the chat template's text around an audio token for each of `n_embeds` and the instruction."""
    return f"{settings.prompt_prefix}{settings.audio_text * n_embeds}{instruct}{settings.prompt_suffix}"
