"""Turns texts into sequences under either protocol; a token is stored as a code from 0 to 255, its id is one more.

standard    bytes: the code is the byte, so that there are 257 ids with that of padding (Long Range Arena's)
hgrn        characters: 0 for those that aren't in the alphabet, 1 for the text's end, which counts as a token, and
            2, 3, ... for the alphabet's (S4's loaders, arXiv:2111.00396, which HGRN's and HGRN2's runs use)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

PROTOCOLS = ("standard", "hgrn")
BYTE_IDS = 257
PRINTABLE = "".join(map(chr, range(32, 127)))
Encoder = Callable[[bytes], np.ndarray]


def byte_encoder(max_tokens: int) -> Encoder:
    """Encodes the first `max_tokens` bytes."""
    return lambda text: np.frombuffer(text[:max_tokens], np.uint8)


def character_encoder(alphabet: str, max_tokens: int) -> Encoder:
    """Encodes the first characters and the end, `max_tokens` together.

    What is not UTF-8 is not in the alphabet.
    """
    codes = np.zeros(0x110000, np.uint8)
    codes[[ord(character) for character in alphabet]] = np.arange(2, 2 + len(alphabet))

    def encode(text: bytes) -> np.ndarray:
        characters = _first_characters(text, max_tokens - 1)
        points = np.frombuffer(characters.encode("utf-32-le"), np.uint32)
        return np.append(codes[points], np.uint8(1))

    return encode


def frequent_characters(texts: Iterable[bytes], count: int, max_tokens: int) -> str:
    """Returns the `count` most frequent codes that an encoder would keep; of equally frequent ones the lower."""
    counter: Counter[str] = Counter()
    for text in texts:
        counter.update(_first_characters(text, max_tokens - 1))
    return "".join(sorted(counter, key=lambda character: (-counter[character], character))[:count])


def character_ids(characters: int) -> int:
    """Returns how many ids an alphabet of so many characters needs: theirs, padding, unknown and end."""
    return characters + 3


def _first_characters(text: bytes, count: int) -> str:
    return text[: 4 * count].decode("utf-8", "replace")[:count]
