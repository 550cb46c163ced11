"""Similarity in meaning: a model of words with vectors at right angles gives cosines that can be computed by hand."""

import sys

import pytest

from palimpsest.analysis.generation import embeddings
from palimpsest.data.errors import UserError
from tests.analysis.generation.sentences import write_model

pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("sentences")
    write_model(place, ["sun", "moon", "star"])
    return embeddings.load(str(place))


def test_worked_example(model):
    """Means of unit vectors: (1, 1)/2 against (1, 0, 1)/2 have the cosine 1/2; (2, 1)/3 against (1, 0): 2/sqrt(5)."""
    texts = ["sun moon", "sun moon", "sun sun moon", "sun"]
    others = ["sun star", "moon sun", "sun", "star"]
    found = embeddings.similarity(model, texts, others)
    assert found == pytest.approx([0.5, 1, 2 / 5**0.5, 0], abs=1e-6)


def test_an_empty_continuation_is_like_nothing(model):
    assert embeddings.similarity(model, ["", "sun"], ["sun", "sun"]) == pytest.approx([0, 1], abs=1e-6)


def test_no_model_is_told(tmp_path):
    with pytest.raises(
        UserError, match=r"^generate.embeddings=\S+nothing: no sentence-embedding model could be read"
    ):
        embeddings.load(str(tmp_path / "nothing"))


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(
        UserError, match=r"needs the package sentence-transformers; pip install -e '.\[semantic\]'"
    ):
        embeddings.load("any")
