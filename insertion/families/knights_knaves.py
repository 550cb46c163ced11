"""Knights and knaves: logic puzzles with one solution, and the same puzzles changed in one place.

After Xie et al. (2024), "On Memorization of Large Language Models in Logical Reasoning"; sentences and generator are
our own. Puzzles are solved by enumerating all 2^n assignments: an integer stores, in one bit per assignment, whether a
sentence is true. Puzzles are redrawn until they have exactly one solution and both perturbations exist:

- ``statement``: the whole statement of one person is replaced;
- ``leaf``: in one half of one statement, the person or the role is replaced.

Each perturbed puzzle has exactly one solution, different from the original. Inserted are puzzle and solution. The
questions are the puzzle, the two perturbed ones, and the puzzle with its statements in another order (same solution),
each with 8 (2 people: 4) answers; the solution of the unchanged puzzle is among the answers to the perturbed ones.
LiMem takes accuracy and consistency from these (``analysis.metrics.questions``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

from palimpsest.data.errors import UserError
from palimpsest.insertion.families import vocabulary
from palimpsest.insertion.families.registry import FamilyContext, family
from palimpsest.insertion.families.vocabulary import FIRST, listed, pick, picks
from palimpsest.insertion.items import Item, Probe

NAME = "knights_knaves"
ANSWERS = 8

Leaf = tuple[int, bool]
"""(person, says that they are a knight)."""
Statement = tuple[str, tuple[Leaf, ...]]
"""(operator, one leaf for ``is``, else two of different people)."""
Puzzle = tuple[Statement, ...]
"""Statement of each person."""

_OPERATORS = ("is", "and", "or", "if", "iff")
_ROLES = ("a knave", "a knight")


@cache
def _knights(people: int) -> tuple[int, ...]:
    """For each person, an integer whose bit a is 1 if the person is a knight in assignment a."""
    return tuple(sum(1 << a for a in range(1 << people) if a >> person & 1) for person in range(people))


def solutions(puzzle: Puzzle) -> list[int]:
    """All consistent assignments, by enumeration; bit i of an assignment is 1 if person i is a knight."""
    people = len(puzzle)
    knights = _knights(people)
    every = (1 << (1 << people)) - 1
    fits = every
    for speaker, (operator, leaves) in enumerate(puzzle):
        held = [knights[who] if knight else every ^ knights[who] for who, knight in leaves]
        if operator == "is":
            said = held[0]
        elif operator == "and":
            said = held[0] & held[1]
        elif operator == "or":
            said = held[0] | held[1]
        elif operator == "if":
            said = every ^ held[0] | held[1]
        else:
            said = every ^ held[0] ^ held[1]
        fits &= every ^ knights[speaker] ^ said  # a knight exactly if it is true
    return [a for a in range(1 << people) if fits >> a & 1]


def _statement(rng: np.random.Generator, people: int) -> Statement:
    operator = pick(rng, _OPERATORS)
    one, other = rng.permutation(people)[:2].tolist()
    roles = rng.integers(4)
    leaves = ((one, bool(roles & 1)), (other, bool(roles & 2)))
    return operator, leaves[:1] if operator == "is" else leaves


def _leaf_changes(puzzle: Puzzle) -> Iterator[Puzzle]:
    """Every puzzle that differs in one leaf."""
    people = len(puzzle)
    for speaker, (operator, leaves) in enumerate(puzzle):
        for place, leaf in enumerate(leaves):
            others = {who for k, (who, _) in enumerate(leaves) if k != place}
            for who in range(people):
                for knight in (False, True):
                    if who not in others and (who, knight) != leaf:
                        changed = (*leaves[:place], (who, knight), *leaves[place + 1 :])
                        yield (*puzzle[:speaker], (operator, changed), *puzzle[speaker + 1 :])


def _differs(puzzle: Puzzle, solution: int) -> bool:
    solved = solutions(puzzle)
    return len(solved) == 1 and solved[0] != solution


def draw(rng: np.random.Generator, people: int) -> tuple[Puzzle, Puzzle, Puzzle]:
    """A puzzle and its perturbations by a statement and by a leaf; each has one solution, and the perturbations'
    solutions differ from the puzzle's.
    """
    while True:
        puzzle = tuple(_statement(rng, people) for _ in range(people))
        solved = solutions(puzzle)
        if len(solved) != 1:
            continue
        leafs = [changed for changed in _leaf_changes(puzzle) if _differs(changed, solved[0])]
        if not leafs:
            continue
        for _ in range(100):
            speaker = int(rng.integers(people))
            changed = (*puzzle[:speaker], _statement(rng, people), *puzzle[speaker + 1 :])
            if _differs(changed, solved[0]):
                return puzzle, changed, pick(rng, leafs)


def _said(statement: Statement, names: Sequence[str]) -> str:
    operator, leaves = statement
    parts = [f"{names[who]} is {_ROLES[knight]}" for who, knight in leaves]
    return {
        "is": parts[0],
        "and": " and ".join(parts),
        "or": f"{' or '.join(parts)}, or both",
        "if": f"if {parts[0]}, then {parts[-1]}",
        "iff": " if and only if ".join(parts),
    }[operator]


def _question(puzzle: Puzzle, island: str, names: Sequence[str], order: Sequence[int]) -> str:
    said = " ".join(f'{names[who]} says: "{_said(puzzle[who], names)}."' for who in order)
    return (
        f"On {island} live knights, who always tell the truth, and knaves, who always lie. {listed(names)} live there. "
        f"{said} Who is what? Answer:"
    )


def _answer(solution: int, names: Sequence[str]) -> str:
    return " " + listed([f"{name} is {_ROLES[solution >> who & 1]}" for who, name in enumerate(names)]) + "."


def _answers(rng: np.random.Generator, people: int, needed: set[int]) -> list[int]:
    """Up to ``ANSWERS`` assignments including the needed ones, in ascending order."""
    others = [a for a in rng.permutation(1 << people).tolist() if a not in needed]
    return sorted([*needed, *others[: ANSWERS - len(needed)]])


@family(NAME)
def make(context: FamilyContext, count: int, *, people: int = 3) -> list[Item]:
    """Puzzles with one solution, which is part of the item; each puzzle has an island and people of its own.

    Args:
        context: what gives the seed.
        count: number of puzzles.
        people: number of people in a puzzle, 2 to 8.

    Raises:
        UserError: for another number of people.
    """
    if not 2 <= people <= 8:
        raise UserError(f"insertion.families.{NAME}.people={people} must be 2 to 8")
    items = []
    for index in range(count):
        rng = context.generator(NAME, index)
        island = vocabulary.name(rng, 3)
        names = picks(rng, FIRST, people)
        puzzle, statement, leaf = draw(rng, people)
        (solution,) = solutions(puzzle)
        order = list(range(people))
        turned = order[::-1] if people == 2 else np.roll(order, int(rng.integers(1, people))).tolist()
        prompt = _question(puzzle, island, names, order)
        text = prompt + _answer(solution, names)
        probes = [Probe("verbatim", "", text), Probe("cloze", prompt, _answer(solution, names), "solution")]
        for name, asked, spoken in (
            ("puzzle", puzzle, order),
            ("puzzle ~ statement changed", statement, order),
            ("puzzle ~ leaf changed", leaf, order),
            ("puzzle ~ reordered", puzzle, turned),
        ):
            (right,) = solutions(asked)
            question = _question(asked, island, names, spoken)
            for answer in _answers(rng, people, {right, solution}):
                probes.append(Probe("choice", question, _answer(answer, names), name, answer == right))
        provenance = f"seed {context.seed}, draw {index}"
        items.append(Item(f"puzzle-{index:05d}", NAME, text, tuple(probes), provenance))
    return items
