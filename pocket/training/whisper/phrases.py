"""The small world that whisper-pocket talks about: parallel English, German and Spanish phrases."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

LANGUAGES = ("en", "de", "es")
T = TypeVar("T")


class Phrase(NamedTuple):
    """One phrase in every language, in the order of LANGUAGES."""

    en: str
    de: str
    es: str


class Noun(NamedTuple):
    """English; German nominative and accusative; Spanish, all but the English with their article."""

    en: str
    de: str
    de_accusative: str
    es: str


class Colour(NamedTuple):
    """English, German, Spanish masculine and feminine."""

    en: str
    de: str
    es: str
    es_feminine: str


_UNITS = (
    (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen"
    ),
    (
        "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
        "siebzehn achtzehn neunzehn"
    ),
    (
        "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis diecisiete "
        "dieciocho diecinueve veinte veintiuno veintidós veintitrés veinticuatro veinticinco veintiséis veintisiete "
        "veintiocho veintinueve"
    ),
)
_TENS = (
    "- - twenty thirty forty fifty sixty seventy eighty ninety",
    "- - zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig",
    "- - veinte treinta cuarenta cincuenta sesenta setenta ochenta noventa",
)
UNITS, TENS = (tuple(words.split() for words in language) for language in (_UNITS, _TENS))
DEVICES = (
    Noun("light", "das Licht", "das Licht", "la luz"),
    Noun("lamp", "die Lampe", "die Lampe", "la lámpara"),
    Noun("radio", "das Radio", "das Radio", "la radio"),
    Noun("fan", "der Ventilator", "den Ventilator", "el ventilador"),
    Noun("heating", "die Heizung", "die Heizung", "la calefacción"),
)
OPENINGS = (
    Noun("door", "die Tür", "die Tür", "la puerta"),
    Noun("window", "das Fenster", "das Fenster", "la ventana"),
    Noun("gate", "das Tor", "das Tor", "el portón"),
    Noun("box", "die Kiste", "die Kiste", "la caja"),
)
THINGS = (
    Noun("house", "das Haus", "das Haus", "la casa"),
    Noun("car", "das Auto", "das Auto", "el coche"),
    Noun("ball", "der Ball", "den Ball", "la pelota"),
    *OPENINGS,
)
COLOURS = (
    Colour("red", "rot", "rojo", "roja"),
    Colour("green", "grün", "verde", "verde"),
    Colour("blue", "blau", "azul", "azul"),
    Colour("yellow", "gelb", "amarillo", "amarilla"),
    Colour("black", "schwarz", "negro", "negra"),
    Colour("white", "weiß", "blanco", "blanca"),
)
DIRECTIONS = (
    Phrase("left", "nach links", "a la izquierda"),
    Phrase("right", "nach rechts", "a la derecha"),
    Phrase("up", "nach oben", "hacia arriba"),
    Phrase("down", "nach unten", "hacia abajo"),
    Phrase("back", "zurück", "hacia atrás"),
    Phrase("forward", "vorwärts", "hacia adelante"),
)
LEVELS = (Phrase("volume", "die Lautstärke", "el volumen"), Phrase("temperature", "die Temperatur", "la temperatura"))
COUNTED = (
    Phrase("apples", "Äpfel", "manzanas"),
    Phrase("books", "Bücher", "libros"),
    Phrase("keys", "Schlüssel", "llaves"),
)
SET_PHRASES = (
    Phrase("yes", "ja", "sí"),
    Phrase("hello", "hallo", "hola"),
    Phrase("thank you", "danke", "gracias"),
    Phrase("good morning", "guten Morgen", "buenos días"),
    Phrase("good night", "gute Nacht", "buenas noches"),
    Phrase("please stop", "bitte stopp", "para por favor"),
    Phrase("what time is it", "wie spät ist es", "qué hora es"),
    Phrase("play the music", "spiele die Musik", "pon la música"),
    Phrase("stop the music", "stoppe die Musik", "para la música"),
    Phrase("how are you", "wie geht es dir", "cómo estás"),
)
_SET_ENGLISH = frozenset(phrase.en for phrase in SET_PHRASES)


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """Return one of `items`, each equally likely."""
    return items[int(rng.integers(len(items)))]


def number(value: int) -> Phrase:
    """Return 0 <= `value` < 100 in words."""
    tens, units = divmod(value, 10)
    english, german, spanish = UNITS
    if value < len(english):
        return Phrase(english[value], german[value], spanish[value])
    in_english, in_german, in_spanish = (words[tens] for words in TENS)
    if units:
        in_english += f" {english[units]}"
        in_german = ("ein" if units == 1 else german[units]) + "und" + in_german
        in_spanish += f" y {spanish[units]}"
    return Phrase(in_english, in_german, spanish[value] if value < len(spanish) else in_spanish)


def _digits(rng: np.random.Generator, count: int) -> Phrase:
    digits = rng.integers(10, size=count)
    return Phrase(*(" ".join(words[digit] for digit in digits) for words in UNITS))


def _some_number(rng: np.random.Generator, low: int = 0) -> Phrase:
    return number(int(rng.integers(low, 100)))


def _switch(rng: np.random.Generator) -> Phrase:
    device, on = pick(rng, DEVICES), pick(rng, (True, False))
    return Phrase(
        f"turn {'on' if on else 'off'} the {device.en}",
        f"schalte {device.de_accusative} {'ein' if on else 'aus'}",
        f"{'enciende' if on else 'apaga'} {device.es}",
    )


def _open(rng: np.random.Generator) -> Phrase:
    thing, opened = pick(rng, OPENINGS), pick(rng, (True, False))
    return Phrase(
        f"{'open' if opened else 'close'} the {thing.en}",
        f"{'öffne' if opened else 'schließe'} {thing.de_accusative}",
        f"{'abre' if opened else 'cierra'} {thing.es}",
    )


def _go(rng: np.random.Generator) -> Phrase:
    way = pick(rng, DIRECTIONS)
    return Phrase(f"go {way.en}", f"gehe {way.de}", f"ve {way.es}")


def _set_level(rng: np.random.Generator) -> Phrase:
    level, to = pick(rng, LEVELS), _some_number(rng)
    return Phrase(f"set the {level.en} to {to.en}", f"stelle {level.de} auf {to.de}", f"pon {level.es} a {to.es}")


def _set_timer(rng: np.random.Generator) -> Phrase:
    minutes = _some_number(rng, low=2)
    return Phrase(
        f"set a timer for {minutes.en} minutes",
        f"stelle einen Timer auf {minutes.de} Minuten",
        f"pon un temporizador de {minutes.es} minutos",
    )


def _is_coloured(rng: np.random.Generator) -> Phrase:
    thing, colour = pick(rng, THINGS), pick(rng, COLOURS)
    spanish = colour.es_feminine if thing.es.startswith("la") else colour.es
    return Phrase(f"the {thing.en} is {colour.en}", f"{thing.de} ist {colour.de}", f"{thing.es} es {spanish}")


def _where_is(rng: np.random.Generator) -> Phrase:
    thing = pick(rng, (*DEVICES[1:4], *THINGS))
    return Phrase(f"where is the {thing.en}", f"wo ist {thing.de}", f"dónde está {thing.es}")


def _call(rng: np.random.Generator) -> Phrase:
    digits = _digits(rng, int(rng.integers(2, 5)))
    return Phrase(f"call {digits.en}", f"rufe {digits.de} an", f"llama al {digits.es}")


def _have(rng: np.random.Generator) -> Phrase:
    count, things = number(pick(rng, (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 20))), pick(rng, COUNTED)
    return Phrase(f"i have {count.en} {things.en}", f"ich habe {count.de} {things.de}", f"tengo {count.es} {things.es}")


_KINDS: tuple[tuple[float, Callable[[np.random.Generator], Phrase]], ...] = (
    (0.26, lambda rng: _digits(rng, pick(rng, (1, 2, 3, 3, 4, 4, 5)))),
    (0.12, _some_number),
    (0.08, _switch),
    (0.07, _open),
    (0.07, _go),
    (0.07, _set_level),
    (0.05, _set_timer),
    (0.08, _is_coloured),
    (0.05, _where_is),
    (0.04, _call),
    (0.05, _have),
    (0.06, lambda rng: pick(rng, SET_PHRASES)),
)
_BOUNDS = np.cumsum([share for share, _ in _KINDS])


def random_phrase(rng: np.random.Generator) -> Phrase:
    """Return one random phrase of the domain."""
    kind = int(np.searchsorted(_BOUNDS, rng.random(), side="right"))
    return _KINDS[min(kind, len(_KINDS) - 1)][1](rng)


def is_held_out(phrase: Phrase) -> bool:
    """Tell whether the phrase is kept for testing: about 8 % of those with two or more words, in all languages."""
    return " " in phrase.en and phrase.en not in _SET_ENGLISH and zlib.crc32(phrase.en.encode()) % 12 == 0
