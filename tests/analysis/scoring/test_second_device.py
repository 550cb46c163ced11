"""Whole programs on a device that is not the CPU, without one: they give the CPU's numbers, or fail as a GPU would."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from palimpsest.pretrain import checkpoint
from tests import warm
from tests.conftest import REPO
from tests.pretrain.test_training import records

SCRIPT = """
import json
import runpy
import sys
from pathlib import Path

import torch
from torch import distributed

from tests import second_device

join = distributed.init_process_group


def run(task, *given):
    second_device.install()
    distributed.init_process_group = lambda _backend, device_id, **options: join("gloo", **options)
    if task == "released":
        print(json.dumps(released(*given)))
        return
    with second_device.Machine():
        print(json.dumps(globals()[task](*given)))


def program(*given):
    sys.argv = list(given)
    try:
        runpy.run_path(given[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code


def in_training(directory, eod):
    \"\"\"The same questions to a model on the CPU and on the device; then a checkpoint from there, exported.\"\"\"
    from palimpsest.analysis.scoring.in_training import Probing
    from palimpsest.insertion import plan as plans
    from palimpsest.pretrain import checkpoint, model, parallel
    from palimpsest.pretrain.config import ModelConfig, ParallelConfig, RuntimeConfig, TrainConfig
    from palimpsest.pretrain.huggingface import export, shapes

    directory = Path(directory)
    checkpoints = directory / "perturbed" / "checkpoints"
    manifest = checkpoint.read(checkpoints, 20)
    config = manifest.config
    shape = ModelConfig(**shapes.typed(config["model"]) | {"name": "m"})
    train = TrainConfig(
        steps=20, global_batch_size=8, micro_batch_size=2, sequence_length=64, seed=1, checkpoint_every=7,
        precision=config["train"]["precision"],
    )
    with parallel.start(ParallelConfig(), RuntimeConfig(device="cuda")) as world:

        def build():
            return model.build(shape, config["vocab_size"], ParallelConfig(), train, drawn=False)

        def load():
            gpt = build()
            state = checkpoint.load(checkpoints, 20, {"model": gpt.sharded_state_dict()})
            gpt.load_state_dict(state["model"])
            return gpt.requires_grad_(False)  # only the forward pass works there

        eod = int(eod)
        plan = plans.read(directory / "plan")
        probing = Probing(plan, rank=0, ranks=1, eod=eod, vocab_size=config["vocab_size"], build=build)
        torch.cuda.current_device = lambda: second_device.CPU
        on_cpu = probing.ask(load())
        torch.cuda.current_device = lambda: second_device.DEVICE
        gpt = load().to(world.device)
        assert next(gpt.parameters()).is_cuda
        there = probing.ask(gpt)
        copied = Path("copied")
        checkpoint.save(
            copied, 20, {"model": gpt.sharded_state_dict()}, world, config=config,
            inputs=manifest.inputs, facts=manifest.facts,
        )
        exported = export.load(copied, 20, eod=eod).state_dict()
        plain = export.load(checkpoints, 20, eod=eod).state_dict()
    same = all(torch.equal(plain[name], exported[name]) for name in plain)
    return {"cpu": on_cpu, "there": there, "exported": len(plain) if same else 0}


def released(*cases):
    \"\"\"Models of transformers: the numbers of each token, on the CPU and on the device.\"\"\"
    import numpy as np
    import transformers

    from palimpsest.analysis.scoring import huggingface, token_statistics

    texts = [np.random.default_rng(n).integers(1, 97, n) for n in (5, 30, 50, 17)]

    def numbers(model):
        found = token_statistics.score_tokens(model, texts, eod=0, vocab_size=97)
        return {name: values.tolist() for name, values in found.items()}

    found = {}
    for case in cases:
        directory, dtype = case.split(":")
        opened = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
        found[f"{case} cpu"] = numbers(huggingface.of_huggingface(opened))
        with second_device.Machine():
            model = huggingface.of_huggingface(opened.to("cuda"))
            assert model.device.type == "cuda"
            found[f"{case} cuda"] = numbers(model)
    return found


if __name__ == "__main__":
    run(*sys.argv[1:])
"""


@pytest.fixture
def on_device(tmp_path):
    def run(task, *given, place=tmp_path):
        script = tmp_path / "on_device.py"
        script.write_text(SCRIPT)
        status, out = warm.run([str(script), task, *map(str, given)], place, PYTHONPATH=str(REPO))
        assert status == 0, out
        return json.loads(out.splitlines()[-1])

    return run


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def trained(prepared, request):
    overrides = [f"name=device-{request.param}", f"train.precision={request.param}", "eval.probes_every=10"]
    prepared.ok("plan", *overrides)
    prepared.ok("train", *overrides)
    return overrides, prepared.directory(f"device-{request.param}"), request.param


def read(scores):
    return pl.concat([pl.read_parquet(path) for path in sorted(scores.rglob("*.parquet"))])


@pytest.mark.slow
def test_training_is_that_of_a_cpu(prepared, trained, on_device):
    """Losses, gradients, questions on the way, weights; with the last steps from a checkpoint that was saved there."""
    overrides, directory, precision = trained
    there = [f"name=there-{precision}", *overrides[1:]]
    prepared.ok("plan", *there)
    train = prepared.command("train", *there, "runtime.device=cuda")[1:]
    on_device("program", *train, place=prepared.path)
    other = prepared.directory(f"there-{precision}")
    shutil.rmtree(other / "perturbed" / "checkpoints" / "step_00000020")
    on_device("program", *train, place=prepared.path)
    here, found = (records(prepared, path.name[:-9]) for path in (directory, other))
    assert [record["step"] for record in found] == list(range(1, 21))
    near = 1e-5 if precision == "fp32" else 3e-3
    for one, another in zip(here, found, strict=True):
        measured = {
            key: value
            for key, value in one.items()
            if key.startswith(("loss", "gradient_norm", "eval/")) and value is not None
        }
        assert {key: another[key] for key in measured} == pytest.approx(measured, rel=near)
    assert any(key.startswith("eval/") for key in found[-1])
    ours, theirs = (
        checkpoint.tensors(checkpoint.path_of(path / "perturbed" / "checkpoints", 20))
        for path in (directory, other)
    )
    for name, weight in ours.items():
        # Adam's averages of gradients made in bf16 have few digits.
        assert (weight - theirs[name]).norm() <= (1e-4 if precision == "fp32" else 0.1) * weight.norm()


def test_checkpoints_are_scored_as_on_a_cpu(prepared, trained, on_device):
    overrides, directory, precision = trained
    prepared.ok("score", *overrides)
    expected = read(directory / "scores" / "perturbed")
    shutil.rmtree(directory / "scores")
    score = prepared.command("score", *overrides, "runtime.device=cuda")[1:]
    on_device("program", *score, place=prepared.path)
    found = read(directory / "scores" / "perturbed")
    if precision == "fp32":
        assert_frame_equal(found, expected)
    else:  # weights stay in bf16 there
        assert found["probe_id"].equals(expected["probe_id"])
        one, other = (table["logprob"].explode().to_numpy() for table in (found, expected))
        assert 0 < np.abs(one - other).mean() < 0.01


def test_questions_in_training_and_export(prepared, trained, on_device):
    _, directory, precision = trained
    eod = json.loads((prepared.corpus(directory.name[:-9]) / "manifest.json").read_text())["facts"]["eod"]
    found = on_device("in_training", directory, eod)
    assert found["cpu"].keys() == found["there"].keys()
    assert "eval/passages/dose 0" in found["cpu"]
    near = pytest.approx(found["cpu"], rel=1e-6 if precision == "fp32" else 5e-3)
    assert found["there"] == near
    assert found["exported"] > 10


def test_released_models_are_scored_as_on_a_cpu(tmp_path, on_device):
    transformers = pytest.importorskip("transformers")
    cases = []
    for kind, dtype in (
        ("llama", "float32"),
        ("gpt2", "bfloat16"),
    ):
        config = transformers.AutoConfig.for_model(
            kind,
            **{"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
            **{"num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.2},
            **{"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None},
        )
        transformers.set_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / kind)
        cases.append(f"{tmp_path / kind}:{dtype}")
    found = on_device("released", *cases)
    for case in cases:
        expected, there = found[f"{case} cpu"], found[f"{case} cuda"]
        if case.endswith("float32"):
            for name, values in expected.items():
                assert there[name] == pytest.approx(values, rel=1e-4, abs=1e-5)
        else:  # the output matrix is multiplied in bf16 there, and summed in float32
            assert np.allclose(there["logprob"], expected["logprob"], atol=0.05)


def test_tensors_of_two_devices_are_refused(on_device, tmp_path):
    script = tmp_path / "mixed.py"
    script.write_text(
        "import torch\n"
        "from tests import second_device\n"
        "second_device.install()\n"
        "with second_device.Machine():\n"
        "    there = torch.ones(3, device='cuda')\n"
        "    assert (there + 1).is_cuda and there.sum().item() == 3 and torch.ones(2).to('cuda').is_cuda\n"
        "    there + torch.ones(3)\n"
    )
    status, out = warm.run([str(script)], tmp_path, PYTHONPATH=str(REPO))
    assert status == 1
    assert "aten.add.Tensor of tensors on cuda:0 and on the CPU" in out


METHODS = sorted(path.stem for path in (REPO / "conf" / "posttrain").glob("*.yaml") if path.stem != "base")
"""Without ``kfac``: of one window at a time megatron-core exchanges a tensor's data, which the stand-in cannot."""
DESIGN = [
    "name=forget-there",
    "insertion.doses=[0,1,8]",
    "insertion.max_share=0.9",
    "report.metrics=[loglik]",
]


@pytest.fixture(scope="module")
def forgotten(prepared):
    """Directory of a forget set whose pair and leave-out twin are trained."""
    prepared.ok("posttrain", *DESIGN, "posttrain=grad_diff", "posttrain.steps=0", timeout=600)
    (place,) = (prepared.directory("forget-there") / "posttrained").iterdir()
    return place


@pytest.mark.long
@pytest.mark.parametrize("method", [name for name in METHODS if name != "kfac"])
def test_post_training_is_that_of_a_cpu(prepared, forgotten, on_device, method):
    asked = [*DESIGN, f"posttrain={method}", "posttrain.seed=7", "posttrain.rows=4", "posttrain.micro_rows=2"]
    if method not in {"retrain", "interpolate", "int4", "int8", "prune", "prune_widths", "kfac"}:
        asked += ["posttrain.steps=3", "posttrain.learning_rate=1e-3"]
    before = set(forgotten.glob("*/checkpoints"))
    prepared.ok("posttrain", *asked, timeout=900)
    (made,) = set(forgotten.glob("*/checkpoints")) - before
    expected = last(made)
    shutil.rmtree(made.parent)
    command = prepared.command("posttrain", *asked, "runtime.device=cuda")[1:]
    on_device("program", *command, place=prepared.path)
    found = last(made)
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        assert (weight - found[name]).norm() <= 1e-3 * weight.norm(), name


def last(checkpoints):
    """Weights of the last checkpoint."""
    step = checkpoint.finished(checkpoints)[-1]
    found = checkpoint.tensors(checkpoint.path_of(checkpoints, step))
    return {name: weight.float() for name, weight in found.items() if not name.startswith("optimizer")}
