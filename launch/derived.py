"""Was a model trained from this run's data? ``python launch/derived.py +experiment=derived_nano``.

``derived.models`` names the models: ``perturbed``, or one of ``transformers``, by its directory or its name on the hub.
Each reads texts of windows that the run read, and the order test says whether its log-likelihoods follow the order in
which the run read them. ``derived.reference=reference`` trains a model of the same shape on the corpus in another order
and subtracts its log-likelihoods, because texts differ in difficulty.

``derived.texts`` names files of text that such a model may have written. The end of the run is trained again
``derived.reshuffled`` times with its windows in other orders, and each text's log-likelihood under the run's last
checkpoint is compared with those under these models. The report is then written again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from palimpsest.analysis.attacks import order as orders
from palimpsest.analysis.attacks import reshuffled
from palimpsest.analysis.attacks.order import PERTURBED, REFERENCE, TWIN
from palimpsest.data import artifact
from palimpsest.data import prepare as corpus
from palimpsest.data.artifact import json_digest
from palimpsest.data.errors import UserError
from palimpsest.data.shards import SHUFFLED
from palimpsest.insertion import plan as plans
from palimpsest.insertion.families import files as files_of_rows
from palimpsest.launch import exported, missing_stages, reference
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.inputs import epoch_seed, open_order
from palimpsest.launch.process import say
from palimpsest.launch.program import program
from palimpsest.pretrain import saved
from palimpsest.pretrain.huggingface import files

if TYPE_CHECKING:
    from palimpsest.analysis.scoring.reader import Reader

LEAST_WINDOWS = 8
"""Fewest windows that are tested."""


def checkpoint_of(experiment: Experiment, model: str) -> Path:
    """Directory of a model to test or subtract.

    Args:
        experiment: the settings of the run.
        model: ``perturbed`` or ``twin``: the last checkpoint of that run; ``reference``: a model of the same shape,
            trained on the corpus in another order if it is not there; else a directory, or a name on the hub, which is
            downloaded if it is not here.

    Raises:
        UserError: if there is no such model, or the run has no checkpoints.
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
    reader, backend = _reader(experiment, model)
    encoded = backend.encode_batch(list(texts), add_special_tokens=False)
    return [
        float(values.mean()) for values in reader.logprobs([one.ids[: reader.positions] for one in encoded])
    ]


def _mean_loglik(experiment: Experiment, model: Path, documents: Sequence[Sequence[int]]) -> float:
    """Mean log-likelihood of all tokens of some documents under a model of the run's tokenizer, nats/token; long ones
    are read in parts of the model's positions.
    """
    reader, _ = _reader(experiment, model)
    size = reader.positions
    parts = [list(ids[at : at + size]) for ids in documents for at in range(0, len(ids), size)]
    return float(np.concatenate(reader.logprobs(parts)).mean())


def _reader(experiment: Experiment, model: Path) -> tuple[Reader, Any]:
    """A model on this machine's device, and its tokenizer."""
    from palimpsest.analysis.scoring.reader import Reader
    from palimpsest.pretrain.parallel import pick_device
    from palimpsest.pretrain.reference import open_reference

    opened = open_reference(str(model), corpus.load_tokenizer(experiment.corpus_directory))
    gpt = opened.gpt.to(pick_device(experiment.runtime))
    return Reader(gpt, opened.start, opened.vocab_size), opened.backend


def models(experiment: Experiment) -> None:
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
        place = experiment.directory / orders.KIND / _named(model, settings, inputs)
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


def documents(file: str) -> list[str]:
    """Texts of a file of ``derived.texts``.

    Raises:
        UserError: for a file that cannot be read, or has no text.
    """
    found: list[str] = []
    if files_of_rows.has_rows(file):
        for number, row in files_of_rows.numbered(file, "derived.texts"):
            if not isinstance(row.get("text"), str):
                raise UserError(
                    f"derived.texts={file}: row {number} has no text; each row needs a column 'text'"
                )
            found.append(row["text"])
    else:
        try:
            found = [Path(file).read_text(encoding="utf-8")]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"derived.texts={file} cannot be read: {error}") from None
    if not (found := [text for text in found if text.strip()]):
        raise UserError(f"derived.texts={file} has no text")
    return found


def texts(experiment: Experiment, given: Mapping[str, Sequence[str]]) -> None:
    """Test every text; stored tests are kept, and so are the models of other orders.

    Args:
        experiment: the settings of the run.
        given: texts of each file.

    Raises:
        UserError: for a step without checkpoint.
    """
    config, place = experiment.derived, experiment.directory / PERTURBED / "checkpoints"
    steps = [step for step in saved.finished(place) if step < experiment.train.end]
    since = config.since
    if since is None:
        half = (experiment.train.begin + experiment.train.end) // 2
        since = max(step for step in steps if step <= half)
    elif since not in steps:
        raise UserError(
            f"derived.since={since}: {place} has no such checkpoint before its last one; those of steps "
            f"{', '.join(map(str, steps))} are there"
        )
    tokenizer = corpus.load_tokenizer(experiment.corpus_directory)
    start = saved.path_of(place, since)
    checkpoints = [saved.path_of(place, experiment.train.end)] + [
        reference.reshuffled(experiment, start, epoch_seed(config.seed, 1 + k))
        for k in range(config.reshuffled)
    ]
    settings = {"reshuffled": config.reshuffled, "since": since, "seed": config.seed}
    plan = plans.read(experiment.directory / "plan").digest
    compared = json_digest([_digest(path) for path in checkpoints])
    for file, parts in given.items():
        ids = [encoded.tolist() for encoded in map(tokenizer.encode, parts)]
        inputs = {"plan": plan, "text": json_digest(ids), "models": compared}
        kept = experiment.directory / reshuffled.KIND / _named(file, settings, inputs)
        if not (kept / artifact.MANIFEST).is_file():
            rows = reshuffled.table_of([_mean_loglik(experiment, path, ids) for path in checkpoints])
            with artifact.writing(
                kept, kind=reshuffled.KIND, schema_version=reshuffled.VERSION, config=settings, inputs=inputs
            ) as draft:
                rows.write_parquet(draft.path / reshuffled.FILE, compression="zstd")
                draft.facts.update(text=file, since=since, tokens=sum(map(len, ids)))
                draft.facts.update(reshuffled.result(rows))
        facts = artifact.read(kept, kind=reshuffled.KIND, schema_version=reshuffled.VERSION).facts
        say(
            f"{file}: {facts['excess']:+.4f} nats/token more than under {facts['models']} models of other orders, "
            f"p = {facts['p']:.2g} by rank, {facts['p_t']:.2g} by t, {facts['tokens']:,} tokens"
        )


def _named(what: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Name of a test's directory."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", what).strip("-.")[-40:]
    return f"{slug}-{json_digest([settings, inputs])[:8]}"


def _digest(model: Path) -> str:
    """Digest of a model's weights."""
    if (model / artifact.MANIFEST).is_file() and not (model / "config.json").is_file():
        return saved.read(model.parent, int(model.name.removeprefix("step_"))).digest
    return files.digest(model)


def work(experiment: Experiment) -> int:
    """Make the run if there is none, test models and texts, then report; status 3 if the audit failed."""
    files.require()
    given = {file: documents(file) for file in experiment.derived.texts}
    there = experiment.train.end in saved.finished(experiment.directory / PERTURBED / "checkpoints")
    if not there and (status := missing_stages.run_alone("run")):
        return status
    if experiment.derived.models:
        models(experiment)
    if given:
        texts(experiment, given)
    return exported.reported(experiment)


main = program(work)

if __name__ == "__main__":
    main()
