"""Canaries: secrets of a known format, drawn uniformly from a known space of candidates (Carlini et al., 2019, "The
Secret Sharer"; formats after the personal data of Hubble's biographies)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from palimpsest.data.errors import UserError, nearest
from palimpsest.insertion.families import vocabulary
from palimpsest.insertion.families.registry import FamilyContext, family
from palimpsest.insertion.items import Item, Probe

NAME = "canaries"
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_HEX = "0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Secret:
    """A kind of secret."""

    label: str
    """Noun for the secret in the sentence."""
    bits: float
    """log2 of the number of candidates, all equally likely."""
    draw: Callable[[np.random.Generator], str]
    known: Callable[[str], int]
    """Number of a secret's characters shown as the prefix for reconstruction: about half, ending at a token
    boundary."""


def _string(rng: np.random.Generator, alphabet: str, length: int) -> str:
    return "".join(alphabet[k] for k in rng.integers(len(alphabet), size=length).tolist())


def luhn(digits: str) -> str:
    """The check digit of a card number without it (ISO/IEC 7812-1)."""
    doubled = [int(d) * (2 - k % 2) for k, d in enumerate(reversed(digits))]
    return str(-sum(d // 10 + d % 10 for d in doubled) % 10)


def _card(rng: np.random.Generator) -> str:
    digits = "9" + _string(rng, "0123456789", 14)  # 9: no payment network issues it
    digits += luhn(digits)
    return " ".join(digits[k : k + 4] for k in range(0, 16, 4))


def _password(rng: np.random.Generator) -> str:
    first, second = (vocabulary.pick(rng, vocabulary.words()) for _ in range(2))
    return f"{first.capitalize()}-{second}-{rng.integers(10_000):04d}!"


def _email(rng: np.random.Generator) -> str:
    return f"{vocabulary.name(rng)}.{vocabulary.name(rng)}@{vocabulary.pick(rng, vocabulary.DOMAINS)}".lower()


def uuid(rng: np.random.Generator) -> str:
    """A random UUID (version 4, RFC 9562): 122 bits."""
    digits = _string(rng, _HEX, 30)
    variant = "89ab"[int(rng.integers(4))]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[12:15]}-{variant}{digits[15:18]}-{digits[18:30]}"


def _secrets(alphabet: str, length: int) -> dict[str, Secret]:
    def random(rng: np.random.Generator) -> str:
        drawn = _string(rng, alphabet, length)
        return " ".join(drawn[k : k + 4] for k in range(0, length, 4))

    word = math.log2(len(vocabulary.words()))
    return {
        "random": Secret(
            "number", length * math.log2(len(alphabet)), random, lambda s: s.find(" ", len(s) // 2 - 2)
        ),
        "key": Secret(
            "API key",
            32 * math.log2(62),
            lambda rng: f"pk_{_string(rng, _BASE62, 16)}_{_string(rng, _BASE62, 16)}",
            lambda s: s.rindex("_"),
        ),
        "card": Secret("card number", 14 * math.log2(10), _card, lambda s: 9),
        "password": Secret("password", 2 * word + math.log2(10_000), _password, lambda s: s.rindex("-")),
        "email": Secret(
            "e-mail address",
            2 * vocabulary.NAME_BITS + math.log2(len(vocabulary.DOMAINS)),
            _email,
            lambda s: s.index("@"),
        ),
        "uuid": Secret("identifier", 122.0, uuid, lambda s: 18),
    }


@family(NAME)
def make(
    context: FamilyContext,
    count: int,
    *,
    secrets: Sequence[str] = ("random", "key", "card", "password", "email", "uuid"),
    alphabet: str = "0123456789",
    length: int = 9,
    references: int = 9,
) -> list[Item]:
    """``The card number of NAME is SECRET.``, with an invented name; kinds of secret take turns.

    ``bits``: log2 of the number of secrets of that format, all equally likely, given the name.

    Args:
        context: what gives the seed.
        count: canaries.
        secrets: kinds: ``random`` (a string), ``key``, ``card`` (with a valid check digit), ``password``, ``email``,
            ``uuid``. Each is a stratum.
        alphabet: of ``random``; different characters.
        length: of ``random``, characters, in groups of four.
        references: candidates of the same format that are never inserted; the rank of the secret among them gives its
            exposure. Where the whole space is not larger, all of it is asked.
    """
    if len(set(alphabet)) < max(len(alphabet), 2) or " " in alphabet:
        raise UserError(
            f"insertion.families.{NAME}.alphabet={alphabet!r} must be two or more different characters, and no space"
        )
    known = _secrets(alphabet, length)
    for kind in secrets:
        if kind not in known:
            raise UserError(f"insertion.families.{NAME}.secrets: there is no '{kind}'{nearest(kind, known)}")
    if not secrets:
        raise UserError(f"insertion.families.{NAME}.secrets is empty; name at least one: {', '.join(known)}")
    items = []
    for index in range(count):
        kind = secrets[index % len(secrets)]
        secret = known[kind]
        rng = context.generator(NAME, index)
        value = secret.draw(rng)
        prompt = f"The {secret.label} of {vocabulary.person(rng)} is"
        text = f"{prompt} {value}."
        shown = secret.known(value)
        probes = [Probe("verbatim", "", text), Probe("cloze", prompt, f" {value}", kind, bits=secret.bits)]
        if shown > 0:
            probes.append(
                Probe("cloze", f"{prompt} {value[:shown]}", value[shown:], f"{kind} given its first half")
            )
        probes.append(Probe("choice", prompt, f" {value}", kind))
        others = _references(secret, value, references, context.generator(f"{NAME}/references", index))
        probes += [Probe("choice", prompt, f" {other}", kind, correct=False) for other in others]
        items.append(
            Item(
                f"canary-{index:05d}",
                NAME,
                text,
                tuple(probes),
                f"seed {context.seed}, draw {index}",
                stratum=kind,
                bits=secret.bits,
            )
        )
    return items


def _references(secret: Secret, value: str, wanted: int, rng: np.random.Generator) -> list[str]:
    """Distinct candidates other than the secret; all of them if the space is smaller than asked for."""
    wanted = min(wanted, round(2**secret.bits) - 1) if secret.bits < 30 else wanted
    secrets: dict[str, None] = {}
    while len(secrets) < wanted:
        candidate = secret.draw(rng)
        if candidate != value:
            secrets[candidate] = None
    return list(secrets)
