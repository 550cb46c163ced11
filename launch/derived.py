"""Was a model trained from this run's data? ``python launch/derived.py +experiment=derived_nano``.

``derived.models`` names the models: ``perturbed``, or one of ``transformers``, by its directory or its name on the hub.
Each reads texts of windows that the run read, and the order test says whether its log-likelihoods follow the order in
which the run read them. The report is then written again. ``derived.reference=reference`` trains a model of the same
shape on the corpus in another order and subtracts its log-likelihoods, because texts differ in difficulty.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from palimpsest.analysis.attacks import order as orders
from palimpsest.analysis.attacks.order import PERTURBED, REFERENCE, TWIN
from palimpsest.data import artifact
from palimpsest.data import prepare as corpus
from palimpsest.data.artifact import json_digest
from palimpsest.data.errors import UserError
from palimpsest.data.shards import SHUFFLED
from palimpsest.insertion import plan as plans
from palimpsest.launch import exported, missing_stages, reference
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.inputs import open_order
from palimpsest.launch.process import say
from palimpsest.launch.program import program
from palimpsest.pretrain import saved
from palimpsest.pretrain.huggingface import files

LEAST_WINDOWS = 8
"""Fewest windows that are tested."""


def checkpoint_of(experiment: Experiment, model: str) -> Path:
    """Directory of a model to test: a checkpoint of the run, of its reference model, or that of a model of
    ``transformers``, downloaded if it is not here.

    Raises:
        UserError: if there is none.
    """
    if model == REFERENCE:
        return reference.in_another_order(experiment)
    if model not in (PERTURBED, TWIN):
        return files.find(model, setting="derived.models")
    place = experiment.directory / model / "checkpoints"
    steps = saved.finished(place)
    if not steps:
        raise UserError(f"there are no checkpoints in {place}; run palimpsest run or palimpsest train first")
    return saved.path_of(place, steps[-1])


def logliks(experiment: Experiment, model: Path, texts: Sequence[str]) -> list[float]:
    """Mean log-likelihood of each text's tokens under a model, nats/token; texts are cut to the model's positions."""
    from palimpsest.analysis.scoring.reader import Reader
    from palimpsest.pretrain.parallel import pick_device
    from palimpsest.pretrain.reference import open_reference

    opened = open_reference(str(model), corpus.load_tokenizer(experiment.corpus_directory))
    reader = Reader(opened.gpt.to(pick_device(experiment.runtime)), opened.start, opened.vocab_size)
    encoded = opened.backend.encode_batch(list(texts), add_special_tokens=False)
    return [
        float(values.mean()) for values in reader.logprobs([one.ids[: reader.positions] for one in encoded])
    ]


def derived(experiment: Experiment) -> None:
    """Test every model; stored tests are kept.

    Raises:
        UserError: unless the run reads one corpus once, in an order drawn at random.
    """
    if not experiment.mixture.plain or experiment.corpus.order != SHUFFLED:
        raise UserError(
            "the order test needs one corpus that is read once in an order drawn at random: mixture.epochs=1, no "
            "mixture.phases, corpus.order=shuffled"
        )
    config = experiment.derived
    plan, windows = plans.read(experiment.directory / "plan"), open_order(experiment)
    tokenizer = corpus.load_tokenizer(experiment.corpus_directory)
    taken = np.union1d(plan.exposures["position"].to_numpy(), plan.edits["position"].to_numpy())
    free = np.setdiff1d(np.array(plan.shape.positions), taken)
    texts = orders.texts_of(
        windows.window, free, config.windows, config.seed, tokenizer.eod, tokenizer.decode
    )
    if len(texts) < LEAST_WINDOWS:
        raise UserError(
            f"the order test needs {LEAST_WINDOWS} windows without insertions and with {orders.LEAST_TOKENS} tokens of "
            f"a document; this run has {len(texts)}: lower insertion.doses or insertion.items_per_dose"
        )
    said = [text for _, text in texts]
    baseline = None if config.reference is None else checkpoint_of(experiment, config.reference)
    of_baseline = cache(lambda: logliks(experiment, baseline, said) if baseline else None)
    for model in config.models:
        path = checkpoint_of(experiment, model)
        against = None if baseline is None or path == baseline else baseline
        settings = {"windows": config.windows, "seed": config.seed}
        inputs = {
            "plan": plan.digest,
            "order": windows.identity,
            "model": _digest(path),
            "reference": "" if against is None else _digest(against),
        }
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.")[-40:]
        place = experiment.directory / orders.KIND / f"{slug}-{json_digest([settings, inputs])[:8]}"
        if not (place / artifact.MANIFEST).is_file():
            own = logliks(experiment, path, said)
            rows = orders.table_of(texts, own, None if against is None else of_baseline())
            with artifact.writing(
                place, kind=orders.KIND, schema_version=orders.VERSION, config=settings, inputs=inputs
            ) as draft:
                rows.write_parquet(draft.path / orders.FILE, compression="zstd")
                draft.facts.update(model=model, reference=None if against is None else config.reference)
                draft.facts.update(orders.result(rows))
        facts = artifact.read(place, kind=orders.KIND, schema_version=orders.VERSION).facts
        say(
            f"{model}: rho = {facts['rho']:.3f} ({facts['low']:.3f} to {facts['high']:.3f}), p = {facts['p']:.2g}, "
            f"{facts['n']} windows"
        )


def _digest(model: Path) -> str:
    """Digest of a model's weights."""
    if (model / artifact.MANIFEST).is_file() and not (model / "config.json").is_file():
        return saved.read(model.parent, int(model.name.removeprefix("step_"))).digest
    return files.digest(model)


def work(experiment: Experiment) -> int:
    """Make the run if there is none, test the models, then report; status 3 if the audit failed."""
    files.require()
    there = experiment.train.end in saved.finished(experiment.directory / PERTURBED / "checkpoints")
    if not there and (status := missing_stages.run_alone("run")):
        return status
    derived(experiment)
    return exported.reported(experiment)


main = program(work)

if __name__ == "__main__":
    main()
