"""The order of windows: megatron-core's own, and document starts without reading a token."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.data.errors import UserError
from palimpsest.data.order import Order
from palimpsest.data.tokens import TokenWriter
from tests.data import neox_order

EOD = 0
VOCABULARY = 50


def corpus(directory, lengths, seed=0):
    rng = np.random.default_rng(seed)
    with TokenWriter(directory / "train", VOCABULARY, EOD) as writer:
        writer.add([rng.integers(1, VOCABULARY, n).astype(np.int32) for n in lengths])


def order(directory, length=16, seed=3, **options):
    facts = {"corpus_digest": "c", "vocab_size": VOCABULARY, "eod": EOD}
    return Order(directory, **facts, sequence_length=length, seed=seed, **options)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=3, max_size=60), st.integers(4, 40), st.integers(0, 1000))
def test_boundaries_are_where_documents_end(tmp_path_factory, lengths, length, seed):
    place = tmp_path_factory.mktemp("corpus")
    corpus(place, lengths)
    if sum(lengths) + len(lengths) <= length:
        return
    ours = order(place, length, seed)
    positions = np.arange(len(ours))
    splits, starts = ours.boundaries(positions)
    for p in positions:
        after = np.flatnonzero(ours.window(p)[:-1] == EOD) + 1
        assert starts[splits[p] : splits[p + 1]].tolist() == after.tolist()


def test_equal_to_megatron_core(tmp_path):
    """Element by element the windows of the dataset that megatron-core's builder makes."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    corpus(tmp_path, [7, 30, 2, 55, 90, 13, 40] * 5)
    ours = order(tmp_path)
    config = GPTDatasetConfig(
        random_seed=3,
        sequence_length=16,
        blend=([str(tmp_path / "train")], None),
        split="1,0,0",
        path_to_cache=str(tmp_path / "theirs"),
        tokenizer=ours.dataset.config.tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    for count in (10, len(ours)):  # within the epoch, a longer run has the same beginning
        theirs = BlendedMegatronDatasetBuilder(GPTDataset, [count, None, None], lambda: True, config).build()[
            0
        ]
        for p in range(count):
            sample = theirs[p]
            assert ours.window(p)[:-1].tolist() == sample["tokens"].tolist()
            assert ours.window(p)[1:].tolist() == sample["labels"].tolist()


GOLDEN = json.loads((Path(__file__).parent / "golden_order.json").read_text())


def test_one_epoch_is_gpt_neoxs(tmp_path):
    """The indices of the golden file, which an implementation of the published algorithm wrote."""
    lengths, length, seed = GOLDEN["lengths"], GOLDEN["sequence_length"], GOLDEN["seed"]
    documents, samples, shuffled = neox_order.one_epoch(lengths, length, seed)
    assert [documents, samples, shuffled] == [GOLDEN[name] for name in ("documents", "samples", "order")]
    corpus(tmp_path, [n - 1 for n in lengths])  # the writer adds the end-of-document token
    ours = order(tmp_path, length, seed)
    assert np.asarray(ours.dataset.document_index).tolist() == documents
    assert np.asarray(ours.dataset.sample_index).tolist() == samples
    assert np.asarray(ours.dataset.shuffle_index).tolist() == shuffled


def test_an_order_is_not_built_where_it_must_be_there(tmp_path):
    corpus(tmp_path, [50] * 40)
    with pytest.raises(UserError, match=r"order .* is not built.*index=true"):
        order(tmp_path, build=False)
    built = order(tmp_path)
    assert order(tmp_path, build=False).window(3).tolist() == built.window(3).tolist()


def test_seed_and_length_are_its_identity(tmp_path):
    corpus(tmp_path, [50] * 40)
    base = order(tmp_path)
    assert base.identity == order(tmp_path).identity
    assert len({base.identity, order(tmp_path, seed=4).identity, order(tmp_path, length=8).identity}) == 3
    assert any(
        not np.array_equal(base.window(p), order(tmp_path, seed=4).window(p)) for p in range(len(base))
    )


def test_leaving_the_epoch_is_refused(tmp_path):
    corpus(tmp_path, [50] * 40)
    ours = order(tmp_path)
    ours.require(len(ours))
    with pytest.raises(UserError, match=f"needs {len(ours) + 1} windows but one epoch of the corpus has"):
        ours.require(len(ours) + 1)
    with pytest.raises(UserError, match=r"mixture\.epochs=3 fits"):
        ours.require(2 * len(ours) + 1)


def test_too_small_and_truncated(tmp_path):
    corpus(tmp_path, [5])
    with pytest.raises(UserError, match="too small for one window"):
        order(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    corpus(other, [50] * 10)
    (other / "train.bin").write_bytes((other / "train.bin").read_bytes()[:-10])
    with pytest.raises(UserError, match=r"train\.bin"):
        order(other)


@pytest.mark.parametrize("damage", ["gone", "an array gone", "an array cut", "digests gone", "digests cut"])
def test_a_stored_order_that_is_lost_or_cut_is_built_again(tmp_path, damage):
    corpus(tmp_path, [40] * 20)
    before = order(tmp_path)
    windows = [before.window(p).tolist() for p in range(len(before))]
    (cache,) = (tmp_path / "order").iterdir()
    array = next(cache.glob("*sample_index.npy"))
    if damage == "gone":
        shutil.rmtree(cache)
    elif damage.startswith("an array"):
        cut = array.read_bytes()[:50]
        array.unlink()  # which those who have mapped it do not feel
        if damage.endswith("cut"):
            array.write_bytes(cut)
    elif damage == "digests gone":
        (cache / "digests.json").unlink()
    else:
        (cache / "digests.json").write_text("{")
    with pytest.raises(UserError, match=r"run launch/prepare.py with index=true"):
        order(tmp_path, build=False)
    after = order(tmp_path)
    assert after.identity == before.identity
    assert [after.window(p).tolist() for p in range(len(after))] == windows
    assert [before.window(p).tolist() for p in range(len(before))] == windows
    assert [path.name for path in (tmp_path / "order").iterdir()] == [cache.name]
