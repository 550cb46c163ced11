"""The shipped experiments that continue a released model, from a tiny one of the class that they name."""

import json
import shutil

import pytest

transformers = pytest.importorskip("transformers")

from tests.conftest import copied, write_text  # noqa: E402
from tests.pretrain.released_models import make  # noqa: E402

SHORT = [
    *("corpus=jsonl", "corpus.source.paths=[text.jsonl]", "corpus.heldout_fraction=0.1"),
    *("train.steps=12", "train.global_batch_size=16", "train.micro_batch_size=8", "train.precision=fp32"),
    *("train.sequence_length=512", "train.checkpoint_every=12", "parallel.tensor=1", "runtime.device=cpu"),
]
MOMENTS = "[0,1,2,3,4,5,6,7,8,9]"
EXPERIMENTS = {
    "facts_7b": (
        "olmo",
        [
            *(
                f"insertion.named_arms.{arm}.items=2"
                for arm in ("never", "once", "duplicated", "paraphrased")
            ),
            *(f"insertion.named_arms.{arm}.phase.at={MOMENTS}" for arm in ("duplicated", "paraphrased")),
            "insertion.max_share=0.9",
        ],
    ),
    "continual_405m": (
        "neox",
        [
            *("mixture.corpora.new.source.kind=jsonl", "mixture.corpora.new.source.paths=[new.jsonl]"),
            *("insertion.doses=[0,1,2]", "insertion.items_per_dose=4", "optimizer.warmup_steps=3"),
        ],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_shipped_experiment_starts_from_a_model_of_its_class(pristine, tmp_path_factory, name):
    """Planned, trained with its twin, audited and exported: step 0 is the given model, and the class stays."""
    import torch

    place = copied(pristine, tmp_path_factory)
    kind, overrides = EXPERIMENTS[name]
    model = make(kind, place.path / "released", max_position_embeddings=512)
    shutil.copy(next((place.path / "runs" / "corpora").glob("*/tokenizer.json")), model)
    write_text(place.path / "new.jsonl", 900)
    place = type(place)(place.path, [f"+experiment={name}", *SHORT, *overrides])
    start = ["model=from_huggingface", "model.weights=released"]
    said = place.ok("prepare", *start).out
    assert "optimizer: its state is new" in said
    place.ok("plan", *start)
    for run in ("perturbed", "twin"):
        place.ok("train", *start, f"run={run}")
    assert "PASS" in place.ok("audit", *start).out
    for step in (0, 12):
        place.ok("export", *start, f"step={step}")
    (directory,) = (path for path in (place.path / "runs" / name).iterdir() if path.is_dir())
    exports = directory / "perturbed" / "export"
    given, first, last = (
        transformers.AutoModelForCausalLM.from_pretrained(path)
        for path in (model, exports / "step_00000000", exports / "step_00000012")
    )
    assert type(first) is type(given) is type(last)
    ids = torch.arange(300)[None]
    with torch.no_grad():
        before, same, after = (one.eval()(ids).logits for one in (given, first, last))
    assert torch.equal(before, same)
    assert (after - before).abs().max() > 0.01
    rates = [
        json.loads(line)["learning_rate"]
        for line in (directory / "perturbed" / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(rates) == 12
    if name == "continual_405m":
        assert rates[0] < rates[1] < rates[2]
