"""Whoever has not read the plan cannot tell members from non-members: for every family, out of the same generator.

A bag of words is fitted on items that a lot has made members or not, and asked about others; so that the areas under
the curve have the standard error of the rank statistic (cross-validation on the same items would add to it).
"""

import gc
import math

import numpy as np
import pytest
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.metrics import roc_auc_score
from sklearn.naive_bayes import MultinomialNB

from insertion import design
from insertion.families.registry import make
from tests.insertion.every_family import SHIPPED, ground, settings

EACH = 2000
"""Members, and as many non-members, that are told apart."""
FITTED = 1000
"""Members, and as many non-members, that the classifier learns from."""
ERROR = math.sqrt((2 * EACH + 1) / (12 * EACH * EACH))
"""Standard error of an AUC where there is nothing to tell: 0.0091."""


@pytest.fixture(autouse=True, scope="module")
def no_garbage():
    """Items have no cycles; looking for some takes as long as making them."""
    gc.disable()
    yield
    gc.enable()


def lot(texts, seed):
    """Whether each text is a member, as a plan decides it: at random inside strata of length."""
    lengths = np.array([len(text) for text in texts])
    blocks = design.strata(np.full(len(texts), "family"), lengths, 2)
    half = len(texts) // 2
    return design.assign(blocks, {0: len(texts) - half, 1: half}, np.random.default_rng(seed))


def auc(texts, members):
    """Area under the curve of a bag of words, of the texts behind the first 2 FITTED."""
    words = HashingVectorizer(n_features=2**16, alternate_sign=False, norm=None, token_pattern=r"\w+|[^\w\s]")
    counts = words.transform(texts)
    fitted = MultinomialNB().fit(counts[: 2 * FITTED], members[: 2 * FITTED])
    return roc_auc_score(members[2 * FITTED :], fitted.predict_proba(counts[2 * FITTED :])[:, 1])


def test_the_classifier_finds_what_there_is():
    """Members that are more often about one topic than non-members stand out."""
    rng = np.random.default_rng(1)
    members = rng.integers(2, size=2 * (FITTED + EACH))
    texts = [
        f"a {'red' if rng.random() < 0.5 + 0.15 * member else 'blue'} thing {rng.integers(1000)}"
        for member in members
    ]
    assert auc(texts, members) > 0.5 + 3 * ERROR


@pytest.mark.parametrize("name", SHIPPED)
def test_members_and_non_members_are_alike(name, tmp_path):
    count = 2 * (FITTED + EACH)
    items = make(name, ground(count), count, settings(name, tmp_path, count))
    texts = [item.text for item in items]
    assert len(set(texts)) == len({item.id for item in items}) == count
    members = np.concatenate([lot(texts[: 2 * FITTED], 1), lot(texts[2 * FITTED :], 2)])
    assert abs(auc(texts, members) - 0.5) < 3 * ERROR
    # Nor do the decoys and foils of one betray what is inserted of another: they are no text of any.
    every = set(texts) | {wording for item in items for wording in item.paraphrases}
    assert not any(p.target in every for item in items for p in item.probes if p.kind == "foil")
    for item in items[:50]:
        _questions_are_fair(item)


def _questions_are_fair(item):
    """A question has one right answer and different ones."""
    questions = {}
    for probe in item.probes:
        if probe.kind == "choice":
            questions.setdefault(probe.name, []).append(probe)
    for answers in questions.values():
        assert sum(probe.correct for probe in answers) == 1
        assert len({(probe.prompt, probe.target) for probe in answers}) == len(answers) > 1
