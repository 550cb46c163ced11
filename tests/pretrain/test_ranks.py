"""Two ranks of one training: what each of them draws, digests and reads when."""

import json

import pytest

from palimpsest.data import artifact
from tests import warm

SCRIPT = """
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import distributed

from palimpsest.data import artifact
from palimpsest.pretrain import model, parallel
from palimpsest.pretrain.config import (
    EvalConfig, ModelConfig, OptimizerConfig, ParallelConfig, RuntimeConfig, TrainConfig,
)
from palimpsest.pretrain.hooks import Evaluation
from palimpsest.pretrain.settings import Settings
from palimpsest.pretrain.telemetry import JsonLines
from palimpsest.pretrain.trainer import Trainer


class Windows:
    identity, eod = "made up", 0

    def require(self, windows):
        pass

    def window(self, position):
        return np.random.default_rng(position).integers(1, 100, 33)


def main(place, options):
    asynchronous = options.pop("checkpoint_async", False)
    topology = ParallelConfig(**options)
    settings = Settings(
        model=ModelConfig(name="m", layers=2, hidden=16, heads=2, ffn=16, tied_embeddings=False),
        optimizer=OptimizerConfig(
            learning_rate=1e-2, min_learning_rate=1e-2, warmup_steps=0, schedule="constant"
        ),
        train=TrainConfig(
            steps=4, global_batch_size=8, micro_batch_size=2, sequence_length=32, seed=1, checkpoint_every=2,
            checkpoint_async=asynchronous
        ),
        parallel=topology,
    )
    drawn, digested, draw, digest = [], [], model._draw, artifact.digest_files

    def count(name, shape, layer, *rest):
        drawn.append([name, *layer])
        return draw(name, shape, layer, *rest)

    def note(directory, names):
        digested.extend(names)
        return digest(directory, names)

    def weights(gpt, due):
        return {"weights": float(sum(one.detach().double().abs().sum() for one in gpt.parameters()))}

    model._draw, artifact.digest_files = count, note
    with parallel.start(topology, RuntimeConfig(device="cpu")) as world:
        found = {"backend": distributed.get_backend(world.control)}
        for attempt, until in (("first", 2), ("again", 4)):
            trainer = Trainer(
                settings, world, order=Windows(), plan=None, vocab_size=200, directory=place
            )
            step = trainer.resume()
            hooks = [Evaluation(EvalConfig(probes_every=1), weights)]
            hooks += [JsonLines(place / "metrics.jsonl", step)] if world.main else []
            trainer.run(hooks, until=until)
            found[attempt] = {"step": step, "drawn": list(drawn), "digested": sorted(set(digested))}
            drawn.clear()
            digested.clear()
        (place / f"rank{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
"""


def train(tmp_path, name, **options):
    """Two ranks, four steps in two attempts; what each rank found, and the records of the steps."""
    script, place = tmp_path / "ranks.py", tmp_path / name
    script.write_text(SCRIPT)
    place.mkdir()
    status, out = warm.run([str(script), str(place), json.dumps(options)], tmp_path, ranks=2)
    assert status == 0, out
    ranks = [json.loads((place / f"rank{rank}.json").read_text()) for rank in range(2)]
    lines = (place / "metrics.jsonl").read_text().splitlines()
    return place, ranks, [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Two stages, whose checkpoints are written beside the training."""
    return train(tmp_path_factory.mktemp("pipeline"), "run", pipeline=2, checkpoint_async=True)


def test_weights_are_drawn_where_they_are_held(pipeline):
    """The embedding on the first stage, the output layer on the last, and of the two layers one each."""
    drawn = [ranks["first"]["drawn"] for ranks in pipeline[1]]
    layers = [{one[1] for one in own if ".layers." in one[0]} for own in drawn]
    assert layers == [{0}, {1}]
    names = [{one[0].split(".")[0] for one in own} for own in drawn]
    assert names == [{"embedding", "decoder"}, {"decoder", "output_layer"}]


def test_a_checkpoint_s_weights_are_not_drawn_first(pipeline):
    for ranks in pipeline[1]:
        assert (ranks["again"]["step"], ranks["again"]["drawn"]) == (2, [])
    assert [record["step"] for record in pipeline[2]] == [1, 2, 3, 4]


def test_each_rank_digests_the_files_that_it_wrote(pipeline):
    """The main rank besides those of no rank; together they are the manifest's. Waiting is not on NCCL."""
    place, ranks, _ = pipeline
    tensors = [{name for name in own["again"]["digested"] if name.endswith(".distcp")} for own in ranks]
    assert all(name.startswith(f"__{rank}_") for rank, names in enumerate(tensors) for name in names)
    directory = place / "checkpoints" / "step_00000004"
    manifest = artifact.read(directory, kind="checkpoint", schema_version=1)
    assert {name for name in manifest.contents if name.endswith(".distcp")} == set.union(*tensors)
    artifact.verify(directory, manifest)
    assert [own["backend"] for own in ranks] == ["gloo", "gloo"]


def test_evaluation_sees_the_weights_of_the_last_step(tmp_path):
    """With parallel.overlap the next forward pass would gather them; an evaluation comes before it."""
    found = [train(tmp_path, str(overlap), overlap=overlap)[2] for overlap in (False, True)]
    plain, overlapped = ([record["weights"] for record in records] for records in found)
    assert len(set(plain)) == 4
    assert overlapped == pytest.approx(plain, rel=1e-6)
