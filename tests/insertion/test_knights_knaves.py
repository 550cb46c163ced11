"""Puzzles read back from their text and solved by trying everything, with nothing of the generator's."""

import itertools
import re
from collections import defaultdict

import pytest

from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import TokenizerConfig, build
from palimpsest.insertion.families.knights_knaves import solutions
from palimpsest.insertion.families.registry import FamilyContext, make


@pytest.fixture(scope="module")
def context():
    return FamilyContext(3, build(iter([]), TokenizerConfig(vocab_size=257)), [])


def said(text):
    """{speaker: statement} of a puzzle's text."""
    return dict(re.findall(r'(\w+) says: "(.*?)\."', text))


def truth(statement, knights):
    """Truth of a statement in English."""

    def leaf(text):
        name, role = re.fullmatch(r"(\w+) is a (knight|knave)", text).groups()
        return (name in knights) == (role == "knight")

    if " if and only if " in statement:
        one, other = statement.split(" if and only if ")
        return leaf(one) == leaf(other)
    if statement.startswith("if "):
        one, other = statement.removeprefix("if ").split(", then ")
        return leaf(other) or not leaf(one)
    if statement.endswith(", or both"):
        return any(leaf(part) for part in statement.removesuffix(", or both").split(" or "))
    return all(leaf(part) for part in statement.split(" and "))


def solved(text):
    """All solutions, each a set of knights."""
    statements = said(text)
    found = []
    for roles in itertools.product((False, True), repeat=len(statements)):
        knights = {name for name, role in zip(statements, roles, strict=True) if role}
        if all(truth(what, knights) == (who in knights) for who, what in statements.items()):
            found.append(knights)
    return found


def named(answer):
    return set(re.findall(r"(\w+) is a knight", answer))


@pytest.mark.parametrize(("people", "count"), [(2, 100), (3, 100), (5, 20), (8, 5)])
def test_one_solution_each_and_perturbed_otherwise(context, people, count):
    for item in make("knights_knaves", context, count, {"people": people}):
        questions = defaultdict(list)
        for probe in item.probes:
            if probe.kind == "choice":
                questions[probe.name].append(probe)
        right = {}
        for name, answers in questions.items():
            assert len({probe.target for probe in answers}) == len(answers) == min(2**people, 8)
            (correct,) = [probe for probe in answers if probe.correct]
            (right[name],) = solved(correct.prompt)  # exactly one
            assert named(correct.target) == right[name]
            # The answer learnt by rote is on offer.
            assert item.text.split("Answer:")[1] in {probe.target for probe in answers}
        prompts = {name: answers[0].prompt for name, answers in questions.items()}
        assert item.text.startswith(prompts["puzzle"])
        assert right["puzzle ~ reordered"] == right["puzzle"]
        assert said(prompts["puzzle ~ reordered"]) == said(prompts["puzzle"])
        assert prompts["puzzle ~ reordered"] != prompts["puzzle"]
        for name in ("puzzle ~ statement changed", "puzzle ~ leaf changed"):
            assert right[name] != right["puzzle"]
            before, after = said(prompts["puzzle"]), said(prompts[name])
            (who,) = [speaker for speaker in before if before[speaker] != after[speaker]]
            if name == "leaf changed":
                leaves = [re.findall(r"\w+ is a \w+", text) for text in (before[who], after[who])]
                assert sum(one != other for one, other in zip(*leaves, strict=True)) == 1
                frames = [re.sub(r"\w+ is a \w+", "_", text) for text in (before[who], after[who])]
                assert frames[0] == frames[1]


def test_the_solver_on_known_puzzles():
    """Worked by hand: bit i set means that person i is a knight."""
    iff = ("iff", ((0, True), (1, True)))
    assert solutions((("is", ((1, False),)), ("is", ((0, False),)))) == [1, 2]  # each calls the other a knave
    assert solutions((("is", ((0, False),)), ("is", ((0, True),)))) == []  # "I am a knave"
    assert solutions((("and", ((0, False), (1, False))), ("is", ((1, True),)))) == [2]  # "we are both knaves"
    assert solutions((iff, ("is", ((0, True),)))) == [3]  # a knight's or a knave's "iff" makes 1 a knight


def test_people_out_of_range(context):
    for people in (1, 9):
        with pytest.raises(UserError, match=f"people={people} must be 2 to 8"):
            make("knights_knaves", context, 1, {"people": people})
