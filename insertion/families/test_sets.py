"""Test sets: benchmark items, inserted in one format and asked in others (after Hubble; Wei et al., 2025).

Rows are recognised by their columns:

==========  ==========================================================================================
like        columns
==========  ==========================================================================================
MMLU, ARC   ``question``, ``choices`` (a list, or an object with ``text`` and ``label``), ``answer`` or ``answerKey``
HellaSwag   ``ctx``, ``endings``, ``label``
PIQA        ``goal``, ``sol1``, ``sol2``, ``label``
WinoGrande  ``sentence`` with ``_``, ``option1``, ``option2``, ``answer`` (1 or 2), ``qID``
PopQA       ``question``, ``possible_answers``; the first one is inserted
your own    ``question`` and ``answer`` (a text), with or without ``choices``; ``pair``
==========  ==========================================================================================

Questions with the same ``pair`` (of WinoGrande: ``qID`` up to the last hyphen) are a minimal pair: one of the two, by a
random bit, is an item, and the other, never inserted, is asked beside it. Lists in CSV are JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.data.errors import UserError, nearest
from palimpsest.insertion.families import files, vocabulary
from palimpsest.insertion.families.registry import FamilyContext, family
from palimpsest.insertion.items import Item, Probe

NAME = "test_sets"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a test set: the common form of the rows of all file formats."""

    text: str
    """Text of the question, with ``_`` at the blank if there is one."""
    choices: tuple[str, ...]
    """Answer choices; only the right answer if the question is generative."""
    answer: int
    """Index of the right choice, from 0."""
    pair: str = ""
    """Id that the questions of a minimal pair share."""

    @property
    def id(self) -> str:
        """Hash of the question."""
        return files.text_id(self.text, *self.choices)


def _question(question: Question, choice: int) -> tuple[str, str]:
    return f"Question: {question.text}\nAnswer:", f" {question.choices[choice]}"


def _options(question: Question, choice: int) -> tuple[str, str]:
    listed = "".join(f"\n{letter}. {text}" for letter, text in zip(_LETTERS, question.choices, strict=False))
    return f"Question: {question.text}{listed}\nAnswer:", f" {_LETTERS[choice]}"


def _infill(question: Question, choice: int) -> tuple[str, str]:
    before, after = question.text.split("_", 1)
    return before.rstrip(), " " * before.endswith(" ") + question.choices[choice] + after


def _cloze(question: Question, choice: int) -> tuple[str, str]:
    if "_" in question.text:  # what follows the blank is scored, given the blank filled in
        before, after = question.text.split("_", 1)
        return before + question.choices[choice], after
    return question.text.rstrip(), f" {question.choices[choice]}"


FORMATS: dict[str, Callable[[Question, int], tuple[str, str]]] = {
    "question": _question,
    "options": _options,
    "infill": _infill,
    "cloze": _cloze,
}
"""Name -> (question, number of a choice) -> (prompt, target): the question with its answer; with lettered options and
the letter; with the blank filled in, scored from the blank on; and the text with the answer after it (or what follows
the blank)."""


def _formats(question: Question) -> list[str]:
    """Formats that a question can have."""
    blank = "_" in question.text
    return [
        "question",
        *(["options"] if len(question.choices) > 1 else []),
        *(["infill"] if blank else []),
        "cloze",
    ]


@family(NAME)
def make(
    context: FamilyContext,
    count: int,
    *,
    path: str = "",
    dataset: str = "",
    subset: str = "",
    split: str = "test",
    revision: str = "",
    limit: int = 20_000,
    licence: str = "",
    format: str = "question",
    ask: Sequence[str] = ("question", "infill", "cloze"),
) -> Sequence[Item]:
    """Benchmark items with their right answers.

    For each format in ``ask``, and for the inserted one: a choice probe for every choice (a cloze, if the question is
    generative), the same choices bare for PMI, and the same of the minimal-pair twin.

    Args:
        context: what gives the seed.
        count: items.
        path: local table; the module's docstring has the columns.
        dataset: data set of Hugging Face ``datasets`` instead (a name, or a directory of ``save_to_disk``), streamed.
            Without path and dataset, the items are minimal pairs about invented people.
        subset: subset of the data set.
        split: split of the data set.
        revision: commit of a data set of the hub; without one, the data may change between runs.
        limit: largest number of rows read of the data set.
        licence: licence of the questions.
        format: format of the inserted items, one of ``FORMATS``.
        ask: formats of the probes; formats that a question cannot have are left out.
    """
    what = f"insertion.families.{NAME}"
    for setting, name in (("format", format), *(("ask", name) for name in ask)):
        if name not in FORMATS:
            raise UserError(f"{what}.{setting}: there is no format '{name}'{nearest(str(name), FORMATS)}")
    if path and dataset:
        raise UserError(f"{what}: give path={path} or dataset={dataset}, not both")
    if not path and not dataset:
        pairs = [_made(context, index) for index in range(count)]
        return [
            _item(
                pair[0], pair[1], format, ask, f"test-{index:05d}", f"seed {context.seed}, draw {index}", ""
            )
            for index, pair in enumerate(pairs)
        ]
    where = f"{what}.path={path}" if path else f"{what}.dataset={dataset}"
    rows = (
        files.rows(path, f"{what}.path")
        if path
        else files.hub_rows(dataset, subset, split, revision, limit, f"{what}.dataset")
    )
    questions = [read(row, f"{where}: row {number}") for number, row in enumerate(rows)]
    usable = [question for question in questions if format in _formats(question)]
    groups: dict[str, dict[str, Question]] = {}
    for question in usable:
        groups.setdefault(question.pair or question.id, {})[question.id] = question
    for name, mates in groups.items():
        if len(mates) > 2:
            raise UserError(f"{where}: {len(mates)} questions have the pair '{name}'; a pair has two")
    ids = list(groups)
    files.need(
        ids,
        count,
        what,
        f"give more questions that format={format} can take, or lower insertion.items_per_dose",
    )
    items = []
    for k in files.draw(ids, context.seed)[:count]:
        group = [groups[ids[k]][name] for name in sorted(groups[ids[k]])]
        bit = int(context.generator(f"{NAME}/{ids[k]}", 0).integers(len(group)))
        twin = group[1 - bit] if len(group) == 2 else None
        name, source = group[bit].id, path or " ".join(filter(None, (dataset, subset, split, revision)))
        items.append(
            _item(group[bit], twin, format, ask, f"test-{name}", f"{source}, {name}", licence or "unstated")
        )
    return items


def _item(
    question: Question,
    twin: Question | None,
    format: str,
    ask: Sequence[str],
    name: str,
    provenance: str,
    licence: str,
) -> Item:
    prompt, target = FORMATS[format](question, question.answer)
    text = prompt + target
    probes = [Probe("verbatim", "", text)]
    for asked in dict.fromkeys([format, *ask]):
        if asked in _formats(question):
            probes += _asked(question, asked, asked)
        if twin is not None and asked in _formats(twin):
            probes += _asked(twin, asked, f"{asked} ~ twin")
    return Item(name, NAME, text, tuple(probes), provenance, licence=licence)


def _asked(question: Question, format: str, name: str) -> list[Probe]:
    if len(question.choices) == 1:
        return [Probe("cloze", *FORMATS[format](question, 0), name)]
    written = [FORMATS[format](question, k) for k in range(len(question.choices))]
    right = [k == question.answer for k in range(len(written))]
    probes = [
        Probe("choice", prompt, target, name, correct)
        for (prompt, target), correct in zip(written, right, strict=True)
    ]
    if len({target for _, target in written}) == len(written):  # else the context tells them apart
        probes += [
            Probe("bare", "", target, name, correct)
            for (_, target), correct in zip(written, right, strict=True)
        ]
    return probes


def _list(value: Any, where: str) -> list[str]:
    """List of texts; in CSV and PopQA, a list written as JSON."""
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        parsed = None
    if not isinstance(parsed, list) or not parsed:
        raise UserError(f"{where}: {value!r} must be a list")
    return [str(text) for text in parsed]


def read(row: dict[str, Any], where: str) -> Question:
    """A question of a row of any layout.

    Raises:
        UserError: for a row of no known layout, or without its answer.
    """
    pair = str(row.get("pair") or "")
    if {"sentence", "option1", "option2"} <= row.keys():
        pair = pair or str(row.get("qID") or "").rpartition("-")[0]
        text = str(row["sentence"])
        if text.count("_") != 1:
            raise UserError(f"{where}: {text!r} must have one _")
        choices = [str(row["option1"]), str(row["option2"])]
        return Question(text, tuple(choices), _number(row.get("answer"), 1, choices, where), pair)
    for text, listed in (("ctx", ("endings",)), ("goal", ("sol1", "sol2"))):
        if {text, *listed} <= row.keys():
            choices = _list(row["endings"], where) if text == "ctx" else [str(row[name]) for name in listed]
            return Question(
                str(row[text]), tuple(choices), _number(row.get("label"), 0, choices, where), pair
            )
    if "question" not in row:
        raise UserError(f"{where} has no known layout; its columns are: {', '.join(row)}")
    text = str(row["question"])
    if row.get("possible_answers"):
        return Question(text, (_list(row["possible_answers"], where)[0],), 0, pair)
    answer = row["answer"] if row.get("answer") is not None else row.get("answerKey")
    given: Any = row.get("choices")
    if not given:
        if answer is None or not str(answer).strip():
            raise UserError(
                f"{where} has no answer; fill its column answer, or answerKey, or possible_answers with a list of texts"
            )
        return Question(text, (str(answer),), 0, pair)
    if isinstance(given, dict):  # ARC
        choices = _list(given.get("text"), where)
        labels = _list(given.get("label"), where)
        if str(answer) not in labels:
            raise UserError(f"{where}: the answer {answer!r} is none of {labels}")
        return Question(text, tuple(choices), labels.index(str(answer)), pair)
    choices = _list(given, where)
    return Question(text, tuple(choices), _number(answer, 0, choices, where), pair)


def _number(answer: Any, first: int, choices: Sequence[str], where: str) -> int:
    """Number of the right choice, given as its text, its letter or its number."""
    given = str(answer).strip()
    if given in choices:
        return list(choices).index(given)
    number = int(given) - first if given.isdigit() else _LETTERS.find(given) if len(given) == 1 else -1
    if not 0 <= number < len(choices):
        raise UserError(f"{where}: the answer {answer!r} is none of its {len(choices)} choices")
    return number


_SCHEMAS = (
    ("{a} lent a {thing} to {b} because _ was", ("generous", "in need")),
    ("{a} asked {b} about the {thing} because _ was", ("curious", "well informed")),
    ("{a} thanked {b} for the {thing} because _ was", ("grateful", "helpful")),
    ("{a} hid the {thing} from {b} because _ was", ("secretive", "a thief")),
    ("{a} sold the {thing} to {b} because _ was", ("in debt", "a collector")),
    ("{a} gave {b} the {thing} to carry because _ was", ("tired", "strong")),
    ("{a} could not lift the {thing} as {b} could because _ was", ("weak", "strong")),
    ("{a} took the {thing} to {b} for repair because _ was", ("clumsy", "skilled")),
    ("{a} wrote to {b} about the {thing} because _ was", ("worried", "the owner")),
    ("{a} won the {thing} from {b} because _ was", ("lucky", "careless")),
)
_THINGS = (
    "anchor basket bell bicycle boat camera chair clock coat drum flute globe hammer harp kettle ladder lamp lantern "
    "map mirror needle painting piano rope saddle spade statue table tent trunk violin wheel"
).split()


def _made(context: FamilyContext, index: int) -> tuple[Question, Question]:
    """Minimal pair in the style of WinoGrande, in random order: one word decides who is meant."""
    rng = context.generator(NAME, index)
    names = [vocabulary.name(rng), vocabulary.name(rng)]
    sentence, endings = vocabulary.pick(rng, _SCHEMAS)
    start = sentence.format(a=names[0], b=names[1], thing=vocabulary.pick(rng, _THINGS))
    swap = int(rng.integers(2))  # which option is named first
    choices = (names[swap], names[1 - swap])
    pair = [
        Question(f"{start} {ending}.", choices, (meant + swap) % 2) for meant, ending in enumerate(endings)
    ]
    bit = int(rng.integers(2))
    return pair[bit], pair[1 - bit]
