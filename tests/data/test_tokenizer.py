import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from palimpsest.data import tokenizer
from palimpsest.data.artifact import file_digest
from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import Tokenizer, TokenizerConfig, load, train

CONFIG = TokenizerConfig(vocab_size=400)
# Repeated counts make many ties between merges, where an unstable trainer would waver.
TEXTS = [f"ab ba cd dc héllo wörld number{i % 50} and {i * 7 % 90} ef fe" for i in range(2000)]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@pytest.fixture(scope="module")
def trained():
    return train(TEXTS, CONFIG)


@given(ANY_TEXT)
@settings(max_examples=300, deadline=None)
def test_any_text_survives_and_never_becomes_the_end_of_document(trained, text):
    for candidate in (text, f"{text}<|endoftext|>{text}"):
        ids = trained.encode(candidate)
        assert ids.dtype == np.int32
        assert trained.decode(ids) == candidate
        assert trained.eod not in ids
        assert ids.max(initial=0) < trained.vocab_size


@given(st.lists(ANY_TEXT, max_size=5))
@settings(max_examples=50, deadline=None)
def test_batches_and_offsets_agree_with_single_encodings(trained, texts):
    for text, ids in zip(texts, trained.encode_batch(texts), strict=True):
        assert ids.tolist() == trained.encode(text).tolist()
        again, offsets = trained.encode_offsets(text)
        assert again.tolist() == ids.tolist()
        covered = {place for start, end in offsets for place in range(start, end)}
        assert covered == set(range(len(text)))
        assert offsets == sorted(offsets)


def test_offsets_are_characters_not_bytes(trained):
    ids, offsets = trained.encode_offsets("ü ba")
    assert [trained.decode(ids[[i]]) for i, span in enumerate(offsets) if span[0] >= 1] == [" ba"]
    assert offsets[-1] == (1, 4)


def test_vocabulary_has_the_size_asked_for_and_the_eod(trained):
    assert trained.vocab_size == 400
    assert trained.decode([trained.eod]) == "<|endoftext|>"


def test_training_gives_the_same_bytes_in_any_order_and_on_any_number_of_threads(trained, tmp_path):
    assert train(reversed(TEXTS), CONFIG).digest == trained.digest
    program = (
        "import sys, runpy; from palimpsest.data.tokenizer import train; "
        f"m = runpy.run_path({str(Path(__file__))!r}); print(train(m['TEXTS'], m['CONFIG']).digest)"
    )
    for threads, seed in (("1", "1"), ("4", "2"), ("7", "3")):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == trained.digest


def test_saved_file_has_the_digest_and_loads_to_the_same(trained, tmp_path):
    path = tmp_path / "tokenizer.json"
    trained.save(path)
    assert file_digest(path) == trained.digest
    for place in (path, tmp_path, str(path)):
        loaded = load(place)
        assert (loaded.digest, loaded.eod, loaded.vocab_size) == (trained.digest, trained.eod, 400)
        assert loaded.encode("héllo <|endoftext|>").tolist() == trained.encode("héllo <|endoftext|>").tolist()


def test_truncation_and_padding_of_a_file_are_switched_off(trained, tmp_path):
    path = tmp_path / "tokenizer.json"
    trained.save(path)
    backend = tokenizers.Tokenizer.from_file(str(path))
    backend.enable_truncation(3)
    backend.enable_padding(length=9)
    backend.save(str(path))
    text = "hello world and many more words"
    assert load(path).encode(text).tolist() == trained.encode(text).tolist()


def test_vocabulary_size_counts_gaps_in_the_ids():
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "<unk>": 5}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["</s>"])
    loaded = Tokenizer(backend, "</s>")
    assert loaded.vocab_size == max(backend.get_vocab().values()) + 1 > 3


def test_missing_eod_names_the_special_tokens(trained, tmp_path):
    trained.save(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"tokenizer\.eod='</s>'.*special tokens: <\|endoftext\|>"):
        load(tmp_path, "</s>")


@pytest.mark.parametrize("text", ["", "{", "{}", '{"model": 1}', "\x00"])
def test_malformed_files_are_named(tmp_path, text):
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer\.json"):
        load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"tokenizer\.json is not"):
        load(path)


@pytest.mark.parametrize("name", ["./nothing", "nothing.json", Path("nothing")])
def test_missing_files_are_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"nothing.* does not exist"):
        load(name)
    with pytest.raises(UserError, match=r"nothing.* does not exist"):
        tokenizer.inputs(TokenizerConfig(kind="file", path=str(name)))


def test_unreachable_hub_gives_one_line(tmp_path):
    program = (
        "from palimpsest.data.tokenizer import load\nfrom palimpsest.data.errors import UserError\n"
        "try: load('nobody/nothing')\nexcept UserError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith("corpus.tokenizer.name='nobody/nothing' could not be loaded")
    assert "tokenizer.kind=file" in line


def test_lone_surrogates_and_foreign_ids_are_refused(trained):
    with pytest.raises(UserError, match="text 1 holds a lone surrogate at character 2"):
        trained.encode_batch(["fine", "ab\ud800"])
    with pytest.raises(UserError, match="lone surrogate"):
        trained.encode_offsets("\udfff")
    for bad in (400, -1):
        with pytest.raises(UserError, match=f"id {bad} is outside"):
            trained.decode([bad])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "tain"}, r"tokenizer\.kind='tain'.*did you mean 'train'"),
        ({"vocab_size": 256}, r"tokenizer\.vocab_size=256"),
        ({"kind": "file"}, r"tokenizer\.path=None"),
        ({"kind": "hub"}, r"tokenizer\.name=None"),
        ({"path": "x"}, r"tokenizer\.path='x' has no effect"),
        ({"eod": ""}, r"tokenizer\.eod=''"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        TokenizerConfig(**settings)


def test_saved_file_is_json_with_every_byte(trained, tmp_path):
    trained.save(tmp_path / "tokenizer.json")
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= vocabulary.keys()
