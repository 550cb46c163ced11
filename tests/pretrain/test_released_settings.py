"""``model=from_huggingface``: shape and tokenizer are read, and what cannot be represented is refused by its name."""

import json
import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir

from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import TokenizerConfig
from palimpsest.data.tokenizer import build as build_tokenizer
from palimpsest.launch import preconditions
from palimpsest.launch.compose import CONF, build
from palimpsest.pretrain.config import ModelConfig

transformers = pytest.importorskip("transformers")

from palimpsest.pretrain.huggingface import files, mapping, shapes  # noqa: E402
from tests.pretrain.released_models import MODELS, make  # noqa: E402


def experiment(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build(compose("config", ["+experiment=quickstart", "train.sequence_length=32", *overrides]))


def unfit(one):
    """Findings before anything is prepared, in one line."""
    with pytest.raises(UserError) as refused:
        preconditions.require_fit(one)
    return str(refused.value)


def started(weights, *overrides):
    return experiment("model=from_huggingface", f"model.weights={weights}", *overrides)


def with_tokenizer(directory, vocab_size=380):
    text = [" ".join(f"word{number * number}" for number in range(k, k + 60)) for k in range(0, 600, 30)]
    tokenizer = build_tokenizer(iter(text * 2), TokenizerConfig(vocab_size=vocab_size))
    tokenizer.backend.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def neox(tmp_path_factory):
    return with_tokenizer(make("neox", tmp_path_factory.mktemp("neox")))


def test_shape_and_tokenizer_are_read(neox):
    found = started(neox)
    assert found.model == ModelConfig(
        name=neox.name,
        layers=2,
        hidden=32,
        heads=4,
        ffn=48,
        norm="layer",
        activation="gelu",
        biases=True,
        parallel_residual=True,
        rotary_fraction=0.25,
        tied_embeddings=False,
        init_std=0.2,
        vocab_size=396,
        weights=str(neox),
    )
    tokenizer = found.corpus.tokenizer
    assert (tokenizer.kind, tokenizer.path) == ("file", str(neox / "tokenizer.json"))
    assert tokenizer.eod == "<|endoftext|>"


def test_what_is_set_stays(neox, tmp_path):
    own = with_tokenizer(tmp_path, 300) / "tokenizer.json"
    given = ("~corpus.tokenizer.vocab_size", "corpus.tokenizer.kind=file", f"+corpus.tokenizer.path={own}")
    found = started(neox, *given, "+model.balance_loss=0.5")
    assert found.corpus.tokenizer.path == str(own)
    assert found.model.balance_loss == 0.5


def test_what_is_said(neox, caplog):
    with caplog.at_level("INFO"):
        started(neox, "optimizer.warmup_steps=7")
    said = caplog.text
    assert f"GPTNeoX of {neox}, 2 layers of 32, 396 rows of vocabulary" in said
    assert "optimizer: its state is new" in said
    assert "warms up over 7 steps" in said


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("olmoe", {"attention_bias": True}, "attention_bias=True is not supported here"),
        ("llama2", {"mlp_bias": True}, "mlp_bias=True is not supported here without attention_bias"),
        ("llama2", {"hidden_act": "gelu"}, "hidden_act=gelu is not supported here"),
        ("neox", {"hidden_act": "relu"}, "hidden_act=relu is not supported here"),
        ("neox", {"attention_bias": False}, "attention_bias=False is not supported here"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, r"mlp_only_layers=\[1\] is not supported here"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise=0.1 is not supported here"),
        (
            "llama2",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type=dynamic is not supported here",
        ),
        ("llama2", {"model_type": "gemma2"}, "model_type=gemma2; training can start from gpt2|llama"),
        ("llama2", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ("mistral", {"sliding_window": 16}, "train.sequence_length=32 is beyond model.attention_window=16"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_its_name(tmp_path, name, change, told):
    with_tokenizer(make(name, tmp_path))
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=told):
        started(tmp_path)


def test_a_window_that_no_text_reaches_is_no_matter(tmp_path):
    assert started(with_tokenizer(make("mistral", tmp_path))).model.attention_window == 48
    qwen = make("qwen2", tmp_path, use_sliding_window=True, sliding_window=40, max_window_layers=1)
    assert started(with_tokenizer(qwen)).model.attention_window == 40
    assert started(make("qwen2", tmp_path, use_sliding_window=False)).model.attention_window is None


def test_an_ill_fitting_tokenizer_or_model_is_refused_before_anything_is_done(neox, tmp_path):
    large = with_tokenizer(tmp_path, 400) / "tokenizer.json"
    ids = files.largest_id(large)
    assert ids >= 396
    given = ("~corpus.tokenizer.vocab_size", "corpus.tokenizer.kind=file", f"+corpus.tokenizer.path={large}")
    assert f"has ids up to {ids}, but model.weights={neox} has a vocabulary of 396 tokens" in unfit(
        started(neox, *given)
    )
    assert "model.vocab_size=396" in unfit(experiment(f"model.weights={neox}", "+model.vocab_size=500"))
    with pytest.raises(UserError, match=r"needs model.weights=DIRECTORY_OR_NAME"):
        experiment("model=from_huggingface")
    with pytest.raises(UserError, match=r"there is no config.json in it"):
        started(tmp_path)
    with pytest.raises(UserError, match=r"model.revision=main is for names on the hub"):
        started(neox, "model.revision=main")


def test_everything_that_does_not_fit_is_named_at_once(neox, tmp_path, monkeypatch):
    """Shape, vocabulary, topology and items, in one line, before anything is prepared."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "items.jsonl").write_text("".join(f'{{"text": "item {k}"}}\n' for k in range(7)))
    slurm = ("launcher=slurm", "launcher.account=me", "launcher.processes=3")
    table = ("insertion=table", "insertion.families.table.path=items.jsonl")
    line = unfit(experiment(f"model.weights={neox}", *slurm, *table))
    for finding in (
        f"model.weights={neox} has another shape; set model.layers=2 model.hidden=32",
        f"corpus.tokenizer.vocab_size=4096, but model.weights={neox} has a vocabulary of 396 tokens",
        "train.global_batch_size=8",
        "insertion.families.table: 50 items are needed, but there are 7",
    ):
        assert line.count(finding) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["items.jsonl"]


def test_weights_are_looked_into_beforehand(tmp_path):
    """A tensor that is missing, and positions that are too few, without reading the tensors."""
    from safetensors.torch import load_file, save_file

    with_tokenizer(make("gpt2", tmp_path, n_positions=16))
    path = tmp_path / "model.safetensors"
    gone = "transformer.h.1.ln_1.bias"
    save_file({name: tensor for name, tensor in load_file(path).items() if name != gone}, path)
    line = unfit(started(tmp_path))
    assert "train.sequence_length=32 is beyond the 16 positions" in line
    assert f"the tensor {gone} is missing" in line


def test_a_name_of_the_hub_is_found_in_its_cache(neox, tmp_path):
    """Left there by an earlier download, by branch; one that is not there and cannot be fetched is one line."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "models--someone--tiny-neox"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "step1000").write_text(commit)
    (place / "snapshots").mkdir()
    (place / "snapshots" / commit).symlink_to(neox)
    script = (
        "import sys\n"
        "from palimpsest.data.errors import UserError\n"
        "from palimpsest.pretrain.huggingface import files\n"
        "print(files.find('someone/tiny-neox', 'step1000'))\n"
        "try:\n    files.find('someone/tiny-neox', 'step2000')\n"
        "except UserError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={
            "HF_HUB_CACHE": str(tmp_path),
            "HF_HUB_OFFLINE": "1",
            "PATH": "",
            "PYTHONPATH": ":".join(sys.path),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found, refused = done.stdout.splitlines()
    assert found == str(place / "snapshots" / commit)
    assert refused.startswith(
        "model.weights=someone/tiny-neox does not exist here, and the hub does not give"
    )
    assert "at revision step2000" in refused


def test_tensors_without_a_place_or_missing_are_named(neox, tmp_path):
    from safetensors.torch import load_file, save_file

    make("neox", tmp_path)
    shape = ModelConfig(
        name="m",
        weights=str(tmp_path),
        **shapes.shape_of(shapes.read_config(tmp_path), "m"),
    )
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    gone = "gpt_neox.layers.1.attention.dense.bias"
    save_file({name: tensor for name, tensor in whole.items() if name != gone}, path)
    with pytest.raises(UserError, match=f"the tensor {gone} is missing"):
        mapping.read(shape, 300)
    save_file({**whole, "gpt_neox.layers.2.attention.dense.bias": torch.zeros(32)}, path)
    with pytest.raises(
        UserError, match=r"layers.2.attention.dense.bias does not belong to a GPTNeoX of 2 layers"
    ):
        mapping.read(shape, 300)
    # Masks that older files keep are no weights.
    save_file({**whole, "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8)}, path)
    assert len(mapping.read(shape, 300)) == 16


def test_files_of_pytorch_and_of_a_body_alone(tmp_path):
    """Revisions of Pythia have no .safetensors; GPT-2's file on the hub names its tensors without ``transformer.``."""
    from safetensors.torch import load_file

    make("gpt2", tmp_path)
    shape = ModelConfig(name="m", weights=str(tmp_path), **shapes.shape_of(shapes.read_config(tmp_path), "m"))
    place = tmp_path / "model.safetensors"
    whole = load_file(place)
    start = mapping.read(shape, 300)
    before = {name: start[name][(1,) if "layers" in name else ()] for name in start}
    place.unlink()
    torch.save(
        {name.removeprefix("transformer."): one for name, one in whole.items()},
        tmp_path / "pytorch_model.bin",
    )
    again = mapping.read(shape, 300)
    assert set(again) == set(before)
    for name, tensor in before.items():
        assert torch.equal(again[name][(1,) if "layers" in name else ()], tensor), name


@pytest.mark.parametrize("name", MODELS)
def test_every_shape_has_its_own_class_again(name, tmp_path):
    make(name, tmp_path)
    config = shapes.read_config(tmp_path)
    told = shapes.shape_of(config, name)
    shape = ModelConfig(name=name, **shapes.typed(told))
    assert shapes.architecture(shape).kind == MODELS[name][0]
    back = shapes.settings(shape, 396, sequence_length=64, eod=0, dtype=torch.float32)
    assert shapes.shape_of(back, name) == told
