"""Exported checkpoints are the same models in ``transformers``, and its models can be started from."""

import subprocess
import sys

import numpy as np
import pytest

transformers = pytest.importorskip("transformers")

SHORT = ["train.steps=8"]
IDS = np.random.default_rng(5).integers(0, 390, (2, 40))

LOGITS = """
import sys
import numpy as np
import torch
from palimpsest.pretrain import checkpoint, model, parallel
from palimpsest.pretrain.config import ModelConfig, ParallelConfig, RuntimeConfig, TrainConfig

def main():
    directory, step, out = sys.argv[1:]
    from pathlib import Path
    place = Path(directory)
    config = checkpoint.read(place, int(step)).config
    train = TrainConfig(**config["train"], micro_batch_size=2, checkpoint_every=1)
    shape = ModelConfig(name="m", **config["model"])
    with parallel.start(ParallelConfig(), RuntimeConfig(device="cpu")):
        gpt = model.build(shape, config["vocab_size"], ParallelConfig(), train)
        gpt.load_state_dict(checkpoint.load(place, int(step), {"model": gpt.sharded_state_dict()})["model"])
        ids = torch.from_numpy(np.load(out))
        with torch.no_grad():
            positions = torch.arange(ids.shape[1]).expand_as(ids)
            np.save(out, gpt.eval()(ids, positions, None)[..., : config["vocab_size"]].numpy())

if __name__ == "__main__":
    main()
"""


def megatron_logits(checkpoints, step, tmp_path):
    """Logits of megatron-core's model for ``IDS``, in a process of its own."""
    script, out = tmp_path / "logits.py", tmp_path / "logits.npy"
    script.write_text(LOGITS)
    np.save(out, IDS)
    subprocess.run([sys.executable, str(script), str(checkpoints), str(step), str(out)], check=True)
    return np.load(out)


def exported_logits(directory):
    import torch

    found = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return found(torch.from_numpy(IDS)).logits.numpy()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A random Llama with grouped queries and an output layer of its own, made and saved by ``transformers``."""
    directory = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        initializer_range=0.3,
    )
    transformers.set_seed(3)
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def started(prepared, llama):
    """A run that starts from it, trained with TP=2 and exported."""
    overrides = ["name=started", *SHORT, "model.kv_heads=2", "model.tied_embeddings=false"]
    overrides.append(f"model.weights={llama}")
    prepared.ok("plan", *overrides)
    prepared.ok("train", *overrides, "parallel.tensor=2", ranks=2)
    prepared.ok("export", *overrides, "step=all")
    return prepared.directory("started") / "perturbed"


@pytest.mark.slow
def test_training_starts_from_a_llama(started, llama):
    """Step 0 is the model that was given, bit for bit, though it went through two tensor-parallel ranks."""
    import torch

    from palimpsest.pretrain.huggingface import export

    given = transformers.AutoModelForCausalLM.from_pretrained(llama).state_dict()
    ours = export.load(started / "checkpoints", 0, eod=0)
    assert type(ours) is transformers.LlamaForCausalLM
    assert ours.state_dict().keys() == given.keys()
    # The corpus's tokenizer found fewer tokens than the 400 that the given model knows.
    assert len(given["lm_head.weight"]) > len(ours.lm_head.weight) > 300
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, given[name][: len(tensor)]), name


@pytest.mark.slow
def test_a_tensor_parallel_checkpoint_has_the_same_logits(started, tmp_path):
    theirs = exported_logits(started / "export" / "step_00000008")
    ours = megatron_logits(started / "checkpoints", 8, tmp_path)
    assert ours.std() > 0.3
    assert np.abs(ours - theirs).max() < 1e-4


def test_an_exported_tokenizer_makes_no_special_token_of_a_text(tmp_path):
    """As in training, where an end of a document is never in the middle of one."""
    from palimpsest.data.tokenizer import TokenizerConfig, train
    from palimpsest.pretrain.huggingface import export as exports

    ours = train(["the cat sat on the mat <|endoftext|>"] * 3, TokenizerConfig(vocab_size=300))
    exports.fast_tokenizer(ours, sequence_length=32).save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("the cat <|endoftext|> sat", "<|endoftext|>"):
        ids = theirs(text)["input_ids"]
        assert ids == ours.encode(text).tolist()
        assert theirs.eos_token_id == ours.eod
        assert ours.eod not in ids
        assert theirs.decode(ids) == text


@pytest.mark.slow
def test_exports_are_revisions_of_one_repository(started, monkeypatch):
    """Read by name and revision without a network, or as subfolders; the card tells what each had seen."""
    import torch

    from palimpsest.insertion import plan as plans

    place, read = started / "export", transformers.AutoModelForCausalLM.from_pretrained
    directories = {int(path.name[5:]): path for path in place.glob("step_*")}
    assert sorted(directories) == [0, 1, 2, 4, 7, 8]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub = {"cache_dir": place}
    for step, directory in directories.items():
        wanted = read(directory).state_dict()
        for found in (
            read("small/perturbed", revision=f"step{step}", **hub),
            read(place, subfolder=directory.name),
        ):
            assert all(torch.equal(wanted[name], tensor) for name, tensor in found.state_dict().items())
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            "small/perturbed", revision=f"step{step}", **hub
        )
        assert tokenizer("The parser") == transformers.AutoTokenizer.from_pretrained(directory)("The parser")
    main, last = read("small/perturbed", **hub).state_dict(), read(directories[8]).state_dict()
    assert all(torch.equal(main[name], tensor) for name, tensor in last.items())
    with pytest.raises(OSError, match="find them in the cached files"):
        read("small/perturbed", revision="step9", **hub)

    plan, card = plans.read(started.parent / "plan"), (place / "README.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| step")]
    arms = list(plan.manifest.facts["arms"])
    doses = dict(zip(plan.items["item_id"], plan.items["arm"], strict=True))
    for step, _, _, total, *counts in rows:
        before = plan.exposures.filter(plan.exposures["position"] < int(step[4:]) * 8)
        told = [doses[plan.items["item_id"][item]] for item in before["item"]]
        assert int(total) == len(told)
        assert [int(count) for count in counts] == [told.count(arm) for arm in arms]
    assert [row[0] for row in rows] == [f"step{step}" for step in sorted(directories)]
    assert int(rows[-1][3]) == plan.manifest.facts["exposures"] > int(rows[1][3]) > 0
    assert "Audit of the finished pair: **not audited yet**" in card


def test_names_of_repositories_are_allowed():
    validate = pytest.importorskip("huggingface_hub.utils").validate_repo_id
    from palimpsest.pretrain.huggingface.export import repository_name

    for name in ("quickstart", "a--b", "a.-b", ".hidden.", "-", "x" * 200, "a.git"):
        validate(repository_name(name, "perturbed"))
    assert repository_name("facts_7b", "twin") == "facts_7b/twin"


@pytest.mark.slow
def test_what_lies_in_an_export(started):
    """Weights without code, a tokenizer that agrees with the corpus's, and a card that tells what was inserted."""
    import json

    from palimpsest.data.tokenizer import load

    place = started / "export" / "step_00000008"
    assert (place / "model.safetensors").is_file()
    assert not list(place.glob("*.bin")) + list(place.glob("*.py"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    text = "The parser reads naïve 数 tokens.\n"
    assert tokenizer(text)["input_ids"] == load(place / "tokenizer.json").encode(text).tolist()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token == tokenizer.bos_token == "<|endoftext|>"
    gpt = transformers.AutoModelForCausalLM.from_pretrained(place)
    prompt = tokenizer("The parser", return_tensors="pt")
    assert gpt.generate(**prompt, max_new_tokens=5, do_sample=False, eos_token_id=-1).shape[1] == 5 + len(
        prompt["input_ids"][0]
    )
    assert gpt.generation_config.eos_token_id == tokenizer.eos_token_id
    card = (place / "README.md").read_text()
    facts = json.loads((started.parent / "plan" / "manifest.json").read_text())["facts"]
    assert f"{facts['items']} items, {facts['exposures']} planned exposures" in card
    assert f"| dose 4 | {facts['arms']['dose 4']['items']} |" in card
    assert "not audited yet" in card


@pytest.mark.slow
def test_a_pipeline_parallel_checkpoint_with_tied_embeddings(prepared, tmp_path):
    """And the other way to the same model: in memory."""
    import torch

    from palimpsest.pretrain.huggingface import export

    overrides = ["name=staged", *SHORT]
    prepared.ok("plan", *overrides)
    prepared.ok("train", *overrides, "parallel.pipeline=2", ranks=2)
    checkpoints = prepared.directory("staged") / "perturbed" / "checkpoints"
    gpt = export.load(checkpoints, 8, eod=0)
    assert gpt.lm_head.weight is gpt.model.embed_tokens.weight
    with torch.no_grad():
        theirs = gpt(torch.from_numpy(IDS)).logits.numpy()
    assert np.abs(megatron_logits(checkpoints, 8, tmp_path) - theirs).max() < 1e-4


def test_checkpoints_of_earlier_versions(tmp_path):
    """The shape's name, which early manifests have, is no part of it; what is unknown is not left out."""
    from palimpsest.data.errors import UserError
    from palimpsest.pretrain.huggingface import export

    given = {"layers": 2, "hidden": 32, "heads": 4, "ffn": 64}
    path = tmp_path / "step_00000008"
    assert export._shape({**given, "name": "nano"}, path) == export._shape(given, path)
    with pytest.raises(UserError, match=r"step_00000008 was written by another version, whose model\.sinks"):
        export._shape({**given, "sinks": 4}, path)


def test_a_shape_that_differs_is_named(llama):
    from palimpsest.data.errors import UserError
    from palimpsest.pretrain.config import ModelConfig
    from palimpsest.pretrain.huggingface import mapping

    shape = ModelConfig(name="m", layers=3, hidden=32, heads=4, ffn=64, weights=str(llama))
    with pytest.raises(UserError, match=r"set model.layers=2 model.kv_heads=2 model.tied_embeddings=false$"):
        mapping.read(shape, 400)


def test_no_code_of_a_model_is_run(llama, tmp_path):
    import torch

    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    from palimpsest.data.errors import UserError
    from palimpsest.pretrain.config import ModelConfig
    from palimpsest.pretrain.huggingface import mapping

    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    torch.save({"model.norm.weight": Evil()}, tmp_path / "pytorch_model.bin")
    shape = ModelConfig(
        name="m",
        layers=2,
        hidden=32,
        heads=4,
        ffn=64,
        kv_heads=2,
        tied_embeddings=False,
        weights=str(tmp_path),
    )
    with pytest.raises(UserError, match=r"pytorch_model\.bin holds no weights that can be read"):
        mapping.read(shape, 400)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"no \.safetensors"):
        mapping.read(shape, 400)


@pytest.mark.slow
def test_a_checkpoint_is_a_reference_model(started, prepared):
    """Without process groups: -ln p of texts is that of the exported model."""
    import torch

    from palimpsest.data import prepare
    from palimpsest.data.errors import UserError
    from palimpsest.data.tokenizer import TokenizerConfig, build
    from palimpsest.pretrain.reference import open_reference

    tokenizer = prepare.load_tokenizer(prepared.corpus())
    place = str(started / "checkpoints" / "step_00000008")
    found = open_reference(place, tokenizer).sample(8, 12, 1.0, np.random.default_rng(2))
    assert found
    theirs = transformers.AutoModelForCausalLM.from_pretrained(started / "export" / "step_00000008").eval()
    for text, ids, lost in found:
        assert tokenizer.encode(text).tolist() == ids.tolist()
        row = torch.tensor([[tokenizer.eod, *ids.tolist()]])
        with torch.inference_mode():
            assert 12 * theirs(row, labels=row).loss.item() == pytest.approx(lost, rel=1e-4)
    with pytest.raises(UserError, match="has a vocabulary of"):
        open_reference(place, build(iter([]), TokenizerConfig(vocab_size=257)))
