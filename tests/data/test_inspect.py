"""Inspection names the sources of a step's windows, and an edited corpus is found by reading all of it."""

import json
import shutil

import numpy as np
import pytest

from palimpsest.data import artifact, tokens
from palimpsest.data.errors import UserError
from palimpsest.data.inspect import pieces, verify
from palimpsest.data.order import Order
from palimpsest.data.prepare import load_tokenizer
from tests.data.test_prepare import corpus, make, texts


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("corpus")
    lines = texts(200)
    manifest = make(corpus(place, lines, heldout_fraction=0.1), place / "out")
    return place / "out", manifest, lines


def test_every_piece_is_part_of_the_row_it_names(made):
    out, manifest, lines = made
    facts = manifest.facts
    order = Order(
        out, corpus_digest="c", vocab_size=facts["vocab_size"], eod=facts["eod"], sequence_length=64, seed=3
    )
    tokenizer = load_tokenizer(out)
    for position in range(len(order)):
        found = pieces(order, [out], tokenizer, range(position, position + 1))
        assert "".join(piece.text for piece in found) == tokenizer.decode(order.window(position))
        assert [piece.offset for piece in found] == sorted(piece.offset for piece in found)
        assert found[0].offset == 0
        for piece in found:
            assert piece.text.removesuffix("<|endoftext|>") in lines[int(piece.row) - 1]


def test_damage_that_sizes_do_not_show_is_found(made, tmp_path):
    out = made[0]
    verify(out)
    edited = tmp_path / "edited"
    shutil.copytree(out, edited, ignore=shutil.ignore_patterns("order"))
    data = np.memmap(edited / "train.bin", dtype=np.uint16, mode="r+")
    data[100] = data[100] ^ 1
    data.flush()
    with pytest.raises(UserError, match=r"train\.bin was changed"):
        verify(edited)
    data[100] = 777
    data.flush()
    document = int(np.searchsorted(tokens.document_offsets(edited / "train"), 100, side="right")) - 1
    with pytest.raises(
        UserError, match=rf"train\.bin document {document} holds id 777, outside the vocabulary"
    ):
        verify(edited)


def test_an_index_of_another_version_is_named(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "x")
    path = tmp_path / "x" / "train.idx"
    data = bytearray(path.read_bytes())
    data[9] = 2
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"train\.idx is an index of version 2"):
        verify(tmp_path / "x")
    manifest = json.loads((tmp_path / "x" / artifact.MANIFEST).read_text())
    assert manifest["kind"] == "corpus"
