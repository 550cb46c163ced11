"""Artefacts that several programs read: corpora, the order of windows, held-out documents, ledgers."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl

from palimpsest.data import artifact
from palimpsest.data import prepare as corpus
from palimpsest.data.artifact import Manifest
from palimpsest.data.errors import UserError
from palimpsest.data.mixture import Mixture, Windows
from palimpsest.data.order import Order
from palimpsest.data.shards import SHUFFLED
from palimpsest.data.stored import StoredOrder
from palimpsest.insertion import ledger
from palimpsest.launch.experiment import Experiment
from palimpsest.pretrain import saved as saved_files


def corpora(experiment: Experiment) -> list[tuple[Path, Manifest]]:
    """Directory and manifest of every corpus, the main one first.

    Raises:
        UserError: if one is not prepared.
    """
    return [
        (directory, artifact.read(directory, kind=corpus.KIND, schema_version=corpus.SCHEMA_VERSION))
        for _, directory in experiment.corpora.values()
    ]


def heldout(experiment: Experiment) -> list[tuple[str, str]]:
    """(digest, text) of the held-out documents."""
    text = pl.read_parquet(experiment.corpus_directory / corpus.HELDOUT, columns=["digest", "text"])
    return list(text.unique("digest", maintain_order=True).iter_rows())


def open_order(experiment: Experiment) -> Windows:
    """The windows of the experiment in training order: one epoch of its corpus, its mixture, or its stored
    order.

    Raises:
        UserError: if a corpus is not prepared, or the corpora are inconsistent with each other.
    """
    train, mixture = experiment.train, experiment.mixture
    if experiment.corpus.order != SHUFFLED:
        directory = experiment.corpus_directory
        return StoredOrder(
            directory,
            manifest=artifact.read(directory, kind=corpus.KIND, schema_version=corpus.SCHEMA_VERSION),
            sequence_length=train.sequence_length,
            index=experiment.corpus.index_file,
            first_window=experiment.corpus.first_window,
        )
    epochs = [
        [
            order_of(directory, train.sequence_length, epoch_seed(train.seed, epoch))
            for epoch in range(mixture.epochs)
        ]
        for _, directory in experiment.corpora.values()
    ]
    if mixture.plain:
        return epochs[0][0]
    return Mixture(epochs, mixture.stretches(train.steps, train.global_batch_size))


def order_of(directory: Path, sequence_length: int, seed: int) -> Order:
    """One epoch of a prepared corpus, shuffled with a seed.

    Raises:
        UserError: if the corpus is not prepared.
    """
    manifest = artifact.read(directory, kind=corpus.KIND, schema_version=corpus.SCHEMA_VERSION)
    return Order(
        directory,
        corpus_digest=manifest.digest,
        vocab_size=manifest.facts["vocab_size"],
        eod=manifest.facts["eod"],
        sequence_length=sequence_length,
        seed=seed,
        build=not _several_nodes(),
    )


def epoch_seed(seed: int, epoch: int) -> int:
    """Seed of an epoch's order: different for each epoch, and for runs with neighbouring seeds."""
    return (seed + 1_000_003 * epoch) % 2**32


def _several_nodes() -> bool:
    """True if torchrun started this process as one of several machines'."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    return ranks > int(os.environ.get("LOCAL_WORLD_SIZE", str(ranks)))


def ledger_of(directory: Path, steps: int) -> tuple[ledger.Ledger, Manifest]:
    """The ledger of a finished run, and the manifest of its last checkpoint.

    Every checkpoint must be complete, belong to the same run, and name the ledger's last part at its step.

    Args:
        directory: directory of the perturbed run or the twin.
        steps: number of steps that the run must have finished.

    Raises:
        UserError: naming a part that is missing, damaged or of another run.
    """
    from palimpsest.pretrain import checkpoint

    place = directory / "checkpoints"
    saved = checkpoint.finished(place)
    if not saved or saved[-1] < steps:
        raise UserError(
            f"run {directory} is at step {saved[-1] if saved else 0} of {steps}; train it to the end before the audit"
        )
    last = checkpoint.read(place, saved[-1])
    whole = ledger.read(directory / "ledger", head=last.inputs["ledger"])
    for step in sorted(set(whole.heads) - set(saved) - checkpoint.removed(place)):
        raise UserError(
            f"checkpoint {checkpoint.path_of(place, step)} is missing: the ledger has a part that ends there, and "
            f"no program removed it; copy it back, or, if you deleted it, add a line {step} to "
            f"{place / saved_files.REMOVED}"
        )
    for step in saved:
        path, manifest = checkpoint.path_of(place, step), checkpoint.read(place, step)
        checkpoint.require_whole(path, manifest)
        checkpoint.require_same(
            path, manifest, last.config, {k: v for k, v in last.inputs.items() if k != "ledger"}
        )
        if whole.heads.get(step) != manifest.inputs["ledger"]:
            raise UserError(
                f"checkpoint {path} does not name the ledger's part that ends at its step; copy "
                f"checkpoint and ledger back from the same run"
            )
        if (manifest.inputs["plan"], manifest.inputs["order"]) != (whole.plan, whole.order):
            raise UserError(
                f"checkpoint {path} belongs to another plan or order than its ledger; copy checkpoint "
                f"and ledger back from the same run"
            )
    return whole, last
