"""The languages that Granite Speech translates to, and how a user may name them."""

from __future__ import annotations

import difflib

from runtime.errors import InputError

# By ISO 639-1 code, with the name that the model's prompt has. It hears and speaks the first six; Italian and Mandarin
# it only translates English to.
LANGUAGES = {
    "en": "English",
    "fr": "French",
    "de": "German",
    "es": "Spanish",
    "pt": "Portuguese",
    "ja": "Japanese",
    "it": "Italian",
    "zh": "Mandarin",
}
HEARD = ("en", "fr", "de", "es", "pt", "ja")
_OTHER_NAMES = {"chinese": "zh", "mandarin chinese": "zh", "castilian": "es"}


def language_code(language: str) -> str:
    """Return the code of a language that a user named by code or English name, in any case ("de", "German").

    Raises
    ------
    InputError
        The model does not translate to it; the message lists near matches or all languages.

    """
    wanted = language.strip().lower()
    names = {name.lower(): code for code, name in LANGUAGES.items()} | _OTHER_NAMES
    code = names.get(wanted, wanted)
    if code in LANGUAGES:
        return code
    near = difflib.get_close_matches(wanted, [*LANGUAGES, *names], n=2)
    listing = ", ".join(f"{name} ({code})" for code, name in LANGUAGES.items())
    hint = f"did you mean {' or '.join(near)}?" if near else f"it translates to {listing}"
    raise InputError(f"--to {language!r}: expected one that the model translates to; {hint}")
