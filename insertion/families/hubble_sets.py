"""Data sets of Hubble (Wei et al., 2025), as their authors publish them: texts that were inserted, with their tasks.

A row has ``text``, which is inserted as it is, and ``meta``, JSON with the fields that the questions are made of. Rows
are recognised by those fields; without ``meta`` they are looked for in the row itself:

==============================  ====================================================  ================================
sets                            fields                                                questions
==============================  ====================================================  ================================
Gutenberg (both), Wikipedia     none                                                  none: the text alone
MRPC, PAWS                      ``detok_sentence1``, ``detok_sentence2``,             which wording was inserted
                                ``random_bit``
MUNCH                           ``apt``, ``inapt``                                    which paraphrase is apt
PopQA                           ``question``, ``possible_answers``                    the first answer
MMLU                            ``question``, ``choices``, ``subject``, ``answer``    letters of the options
HellaSwag                       ``activity_label``, ``ctx_a``, ``ctx_b``,             endings
                                ``endings``, ``label``
PIQA                            ``goal``, ``sol1``, ``sol2``, ``label``               solutions
WinoGrande (both forms)         ``sentence``, ``option1``, ``option2``, ``answer``,   both forms, of the item and of its
                                ``paired_example``                                    twin, which is never inserted
ELLie                           ``Prompt_GPT``, ``Prompt_BERT``, ``label``            what the ellipsis stands for
YAGO                            ``full_name``, seven attributes                       each attribute after four prompts
ECtHR                           ``meta.applicant``, ``identifiable_annotations``      entities that are new in the text
PersonaChat                     ``username``, ``Persona``                             the persona, and whose it is
==============================  ====================================================  ================================

The doses in the files (``duplicates``) are not used: the design draws its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsest.data.errors import UserError
from palimpsest.insertion.families import files, hubble_people, hubble_stand_ins
from palimpsest.insertion.families.hubble_rows import LETTERS, Pool, Row, choice, field, listed, number
from palimpsest.insertion.families.registry import FamilyContext, family
from palimpsest.insertion.items import Item, Probe

NAME = "hubble_sets"


@dataclass(frozen=True, slots=True)
class _Layout:
    """Fields that identify a row's layout, and the function that creates its questions."""

    fields: tuple[str, ...]
    ask: Callable[[Row], list[Probe]]


def _wordings(row: Row) -> list[Probe]:
    pair = [field(row, "detok_sentence1"), field(row, "detok_sentence2")]
    return choice("inserted wording", "", pair, number(row, "random_bit", pair))


def _apt(row: Row) -> list[Probe]:
    pair = [field(row, "apt"), field(row, "inapt")]
    return choice("apt", "", pair, 0)


def _open_question(row: Row) -> list[Probe]:
    answer = listed(row, "possible_answers")[0]
    return [Probe("cloze", f"Question: {field(row, 'question')}\nAnswer:", f" {answer}", "answer")]


def _options(row: Row) -> list[Probe]:
    options = listed(row, "choices")
    subject = field(row, "subject").replace("_", " ")
    lines = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, options, strict=False))
    prompt = (
        f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        f"{field(row, 'question')}\n{lines}Answer:"
    )
    letters = [f" {letter}" for letter in LETTERS[: len(options)]]
    return choice("options", prompt, letters, number(row, "answer", options))


def _endings(row: Row) -> list[Probe]:
    start = f"{field(row, 'activity_label')}: {field(row, 'ctx_a')} {str(row.meta['ctx_b']).capitalize()}"
    endings = [f" {_unbracketed(text)}" for text in listed(row, "endings")]
    return choice("ending", _unbracketed(start), endings, number(row, "label", endings), bare=True)


def _unbracketed(text: str) -> str:
    """A text of WikiHow without its markers: ``[title]`` ends a sentence, others are left out."""
    return " ".join(re.sub(r"\[.*?\]", "", text.replace(" [title]", ". ")).split())


def _solutions(row: Row) -> list[Probe]:
    solutions = [f" {field(row, 'sol1')}", f" {field(row, 'sol2')}"]
    prompt = f"Question: {field(row, 'goal')}\nAnswer:"
    return choice("solution", prompt, solutions, number(row, "label", solutions), bare=True)


def _blank(row: Row) -> list[Probe]:
    twin = row.meta["paired_example"]
    try:
        other = json.loads(twin) if isinstance(twin, str) else dict(twin)
    except (TypeError, ValueError):
        raise UserError(f"{row.where}: paired_example={twin!r} is no JSON object") from None
    mate = Row(row.text, other, f"{row.where} paired_example", row.pool, row.rng, row.choices, row.tokenizer)
    return _both_forms(row, "") + _both_forms(mate, " ~ twin")


def _both_forms(row: Row, suffix: str) -> list[Probe]:
    """WinoGrande's sentence with either option in the blank, scored from the blank on; and as a question with two
    options.
    """
    sentence, options = field(row, "sentence"), [field(row, "option1"), field(row, "option2")]
    before, blank, after = sentence.partition("_")
    if not blank:
        raise UserError(f"{row.where}: {sentence!r} has no _")
    right = number(row, "answer", options, first=1)
    infill = [
        Probe("choice", before + option, f" {after.strip()}", f"infill{suffix}", k == right)
        for k, option in enumerate(options)
    ]
    prompt = f"{sentence}\nOption 1: {options[0]}\nOption 2: {options[1]}\nAnswer:"
    return infill + choice(f"options{suffix}", prompt, [" 1", " 2"], right, bare=True)


def _ellipsis(row: Row) -> list[Probe]:
    rest = field(row, "Prompt_BERT").partition("[MASK]")[2]
    return [Probe("cloze", field(row, "Prompt_GPT"), f" {field(row, 'label')}{rest}", "ellipsis")]


LAYOUTS = {
    "wordings": _Layout(("detok_sentence1", "detok_sentence2", "random_bit"), _wordings),
    "apt or inapt": _Layout(("apt", "inapt"), _apt),
    "open question": _Layout(("question", "possible_answers"), _open_question),
    "options": _Layout(("question", "choices", "subject", "answer"), _options),
    "endings": _Layout(("activity_label", "ctx_a", "ctx_b", "endings", "label"), _endings),
    "solutions": _Layout(("goal", "sol1", "sol2", "label"), _solutions),
    "blank": _Layout(("sentence", "option1", "option2", "answer", "paired_example"), _blank),
    "ellipsis": _Layout(("Prompt_GPT", "Prompt_BERT", "label"), _ellipsis),
    "biography": _Layout(("full_name", *hubble_people.KEYS.values()), hubble_people.biography),
    "case": _Layout(("identifiable_annotations", "meta"), hubble_people.case),
    "persona": _Layout(("username", "Persona"), hubble_people.persona),
}
"""Layouts, in the order in which they are tried; a row of no layout is a passage."""


@family(NAME)
def make(
    context: FamilyContext,
    count: int,
    *,
    path: str = "",
    dataset: str = "",
    file: str = "",
    revision: str = "",
    limit: int = 20_000,
    licence: str = "",
    stand_in: str = "mmlu",
    choices: int = 10,
) -> Sequence[Item]:
    """Texts of one set, each with the questions of its layout.

    Args:
        context: what gives seed and tokenizer.
        count: items.
        path: local file of the set, such as ``testset_mmlu_nodup.jsonl.gz``; the module's docstring has the fields.
        dataset: or a data set of the hub, or a directory that has its file.
        file: its file with each text once; empty: ``NAME_nodup.jsonl.gz``, NAME being the last part of ``dataset``.
        revision: of a data set of the hub, a commit: without one, what the hub serves may change.
        limit: rows read of a data set of the hub.
        licence: of the texts.
        stand_in: with neither, the set whose fields the invented rows have, one of ``hubble_stand_ins.SETS``.
        choices: answers of a question whose wrong ones are drawn from other rows.
    """
    what = f"insertion.families.{NAME}"
    if path and dataset:
        raise UserError(f"{what}: give path={path} or dataset={dataset}, not both")
    if choices < 2:
        raise UserError(f"{what}.choices={choices} must be 2 or more")
    source = path or dataset
    if not source:
        rows, pool = hubble_stand_ins.rows(context, count, stand_in, f"{what}.stand_in")
        where = f"{what}.stand_in={stand_in}"
    else:
        rows = _rows(path, dataset, file, revision, limit, what)
        pool, where = rows, f"{what}.{'path' if path else 'dataset'}={source}"
    texts: dict[str, tuple[int, dict[str, Any]]] = {}
    for place, row in enumerate(rows, start=1):
        if not isinstance(text := row.get("text"), str) or not text.strip():
            raise UserError(f"{where}: row {place} has no text in the field text")
        texts.setdefault(text, (place, row))
    names = {files.text_id(text): text for text in texts}
    ids = list(names)
    files.need(ids, count, where, "give a larger file, or lower insertion.items_per_dose")
    order = [ids[k] for k in files.draw(ids, context.seed)] if source else ids
    others = Pool([(row["text"], _meta(row, f"{where}: row {k}")) for k, row in enumerate(pool, start=1)])
    items = []
    for name in order[:count]:
        text = names[name]
        place, row = texts[text]
        label = f"{where}: row {place}"
        asked = Row(
            text,
            _meta(row, label),
            label,
            others,
            context.generator(f"{NAME}/{name}", 0),
            choices,
            context.tokenizer,
        )
        items.append(
            Item(
                name,
                NAME,
                text,
                (Probe("verbatim", "", text), *_questions(asked)),
                f"{source}, row {place}" if source else f"stand-in, seed {context.seed}, draw {place - 1}",
                licence=(licence or "unstated") if source else "",
            )
        )
    return items


def _questions(row: Row) -> list[Probe]:
    for layout in LAYOUTS.values():
        if set(layout.fields) <= row.meta.keys():
            return layout.ask(row)
    return []


def _meta(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The fields of a row: its ``meta``, which is JSON, or the row itself."""
    given = row.get("meta")
    if given is None or "identifiable_annotations" in row:
        return row
    try:
        parsed = json.loads(given) if isinstance(given, str) else dict(given)
    except (TypeError, ValueError):
        parsed = None
    if not isinstance(parsed, dict):
        raise UserError(f"{where}: the field meta is no JSON object")
    return parsed


def _rows(path: str, dataset: str, file: str, revision: str, limit: int, what: str) -> list[dict[str, Any]]:
    if path:
        return files.rows(path, f"{what}.path")
    name = file or f"{Path(dataset).name}_nodup.jsonl.gz"
    if Path(dataset).is_dir():
        return files.rows(str(Path(dataset) / name), f"{what}.dataset")
    return files.hub_rows(dataset, "", "train", revision, limit, f"{what}.dataset", file=name)
