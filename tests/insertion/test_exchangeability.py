"""Whoever has not read the plan cannot tell members from non-members: for every family, out of the same generator.

A bag of words is fitted on items that a random draw has made members or not, and asked about others; so that the areas
under the curve have the standard error of the rank statistic (cross-validation on the same items would add to it).
Likewise the likelihood under a reference model that knows the family, of bytes given the two before, without the draw;
to it, right answers are as likely as decoys, and texts as foils of their kind.
"""

import gc
import math

import numpy as np
import pytest
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.metrics import roc_auc_score
from sklearn.naive_bayes import MultinomialNB

from palimpsest.insertion import design
from palimpsest.insertion.families.registry import make
from tests.insertion.every_family import SHIPPED, family_context, settings

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


def draw(texts, seed):
    """Membership of each text, as a plan decides it: at random inside strata of length."""
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


class Trigrams:
    """Chances of bytes (modulo 128) given the two before, backing off to one and none."""

    def __init__(self, texts):
        flat, text = self._flat(texts)
        counts = [
            np.bincount(key, minlength=size)
            for key, size in zip(self._keys(flat, text), self.SIZES, strict=True)
        ]
        self.chances = (counts[0] + 0.5) / (counts[0].sum() + 64)
        for of in counts[1:]:
            table = of.reshape(-1, 128)
            before = np.tile(self.chances, len(table) // len(self.chances.reshape(-1, 128))).reshape(
                table.shape
            )
            # Those of "b then c" follow those of "c": the last byte of a context is its fastest digit.
            self.chances = ((table + before) / (table.sum(1, keepdims=True) + 1)).ravel()

    SIZES = (128, 128**2, 128**3)

    @staticmethod
    def _flat(texts):
        encoded = [text.encode() for text in texts]
        lengths = np.array([len(one) for one in encoded])
        return np.frombuffer(b"".join(encoded), np.uint8).astype(np.int64) % 128, np.repeat(
            np.arange(len(texts)), lengths
        )

    @staticmethod
    def _keys(flat, text):
        """Numbers of the one, two and three bytes that end at each byte; a text begins after newlines."""
        one, two = np.full_like(flat, 10), np.full_like(flat, 10)
        one[1:] = np.where(text[1:] == text[:-1], flat[:-1], 10)
        two[2:] = np.where(text[2:] == text[:-2], flat[:-2], 10)
        return flat, one * 128 + flat, (two * 128 + one) * 128 + flat

    def nll(self, texts):
        """-ln p of each text, the mean over its bytes."""
        flat, text = self._flat(texts)
        lost = -np.log(self.chances[self._keys(flat, text)[2]])
        return np.bincount(text, lost, len(texts)) / np.bincount(text, minlength=len(texts))


def test_the_reference_knows_what_it_was_fitted_on():
    """-ln p of "abab...": a and b each follow for certain, but for the smoothing; and probabilities sum to one."""
    found = Trigrams(["ab" * 500] * 3)
    assert found.nll(["ab" * 500])[0] < 0.01 < 3 < found.nll(["xyzw" * 250])[0]
    assert found.chances.reshape(-1, 128).sum(1) == pytest.approx(np.ones(128**2))


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
    items = make(name, family_context(count), count, settings(name, tmp_path, count))
    texts = [item.text for item in items]
    assert len(set(texts)) == len({item.id for item in items}) == count
    members = np.concatenate([draw(texts[: 2 * FITTED], 1), draw(texts[2 * FITTED :], 2)])
    assert abs(auc(texts, members) - 0.5) < 3 * ERROR
    reference = Trigrams(texts[: 2 * FITTED])
    likelihood = reference.nll(texts[2 * FITTED :])
    assert abs(roc_auc_score(members[2 * FITTED :], likelihood) - 0.5) < 3 * ERROR
    _answers_are_alike(name, items[2 * FITTED :], reference)
    # Nor do the decoys and foils of one betray what is inserted of another: they are no text of any.
    every = set(texts) | {wording for item in items for wording in item.paraphrases}
    assert not any(p.target in every for item in items for p in item.probes if p.kind == "foil")
    for item in items[:50]:
        _questions_are_fair(item)


def _answers_are_alike(name, items, reference):
    """The reference alone picks the right answer, or the text among its foils, as often as chance does; all questions
    of an item are taken together, as they are drawn together."""
    above = []
    for item in items[:: len(items) // 400]:
        asked = {}
        for probe in item.probes:
            if probe.kind == "choice" or (probe.kind == "foil" and probe.name not in EASIER):
                asked.setdefault((probe.kind, probe.name, probe.prompt), []).append(probe)
        won = []
        for (kind, *_), probes in asked.items():
            likely = -reference.nll([p.target for p in probes])
            if kind == "foil":
                seen = -reference.nll([item.text])
                won.append(np.mean((seen > likely) + 0.5 * (seen == likely)) - 0.5)
            elif len(probes) > 1:
                best = likely == likely.max()
                right = np.array([p.correct for p in probes])
                won.append((best & right).sum() / best.sum() - 1 / len(probes))
        if won:
            above.append(np.mean(won))
    if len(above) > 1 and name not in LEGIBLE:
        assert abs(np.mean(above)) < 3 * np.std(above, ddof=1) / math.sqrt(len(above)) + 1e-12


EASIER = ("random words", "gibberish")
"""Foils that are no draws of the text's own kind; they compare with dose 0."""
LEGIBLE = ("knights_knaves",)
"""The right answer follows from the question, and some solutions have more puzzles than others."""


def _questions_are_fair(item):
    """A question has one right answer and different ones."""
    questions = {}
    for probe in item.probes:
        if probe.kind == "choice":
            questions.setdefault(probe.name, []).append(probe)
    for answers in questions.values():
        assert sum(probe.correct for probe in answers) == 1
        assert len({(probe.prompt, probe.target) for probe in answers}) == len(answers) > 1
