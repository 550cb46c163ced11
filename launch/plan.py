"""Which text goes where, and when: ``python launch/plan.py +experiment=quickstart``."""

from __future__ import annotations

import os

import polars as pl

from data import artifact
from data import prepare as corpus
from data.artifact import Manifest
from data.errors import UserError
from data.order import Order
from insertion import plan as plans
from insertion.families.registry import OVERLAP
from launch.config import Experiment, program, say


def open_order(experiment: Experiment) -> Order:
    """The windows of the experiment's corpus.

    Raises:
        UserError: if the corpus is not prepared.
    """
    manifest = artifact.read(
        experiment.corpus_directory, kind=corpus.KIND, schema_version=corpus.SCHEMA_VERSION
    )
    return Order(
        experiment.corpus_directory,
        corpus_digest=manifest.digest,
        vocab_size=manifest.facts["vocab_size"],
        eod=manifest.facts["eod"],
        sequence_length=experiment.train.sequence_length,
        seed=experiment.train.seed,
        build=not _several_nodes(),
    )


def _several_nodes() -> bool:
    """Whether torchrun started this process as one of several machines'."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    return ranks > int(os.environ.get("LOCAL_WORLD_SIZE", str(ranks)))


def plan(experiment: Experiment) -> Manifest:
    """Make the experiment's plan, or reuse it.

    Raises:
        UserError: if it cannot be made, or if another plan is in place that training has begun to carry out.
    """
    order = open_order(experiment)
    directory = experiment.directory / "plan"
    finished, differences = artifact.reuse(
        directory,
        kind=plans.KIND,
        schema_version=plans.VERSION,
        config=plans.plan_config(experiment.insertion, experiment.shape),
        inputs={"corpus": order.corpus_digest, "order": order.identity},
    )
    if finished is not None:
        say(f"reusing {directory}")
        return finished
    if differences and (experiment.directory / "perturbed").exists():
        raise UserError(
            f"{directory} no longer fits ({differences[0]}), but training has begun with it; choose another "
            f"name=... or remove {experiment.directory}"
        )
    text = pl.read_parquet(experiment.corpus_directory / corpus.HELDOUT, columns=["digest", "text"])
    return plans.create(
        experiment.insertion,
        experiment.shape,
        order=order,
        tokenizer=corpus.load_tokenizer(experiment.corpus_directory),
        heldout=list(text.unique("digest", maintain_order=True).iter_rows()),
        directory=directory,
    )


@program
def main(experiment: Experiment) -> None:
    """Plan and summarise."""
    facts = plan(experiment).facts
    say(f"plan {experiment.directory / 'plan'}")
    for arm, counts in facts["arms"].items():
        say(f"  {arm:>9}: {counts['items']:4} items, {counts['exposures']:6,} exposures")
    say(
        f"  {facts['exposures']:,} exposures in {facts['windows']:,} windows, "
        f"{facts['share_of_tokens_inserted']:.1%} of the tokens; "
        f"{facts['exposures_at_document_boundary']:,} where a document begins"
    )
    for row in facts["balance"]:
        say(
            f"  balance of {row['covariate']}: largest difference {row['largest_standardised_difference']:.2f} sd, "
            f"p = {row['p']:.2f}"
        )
    if found := facts["items_in_corpus"]:
        say(
            f"  {len(found)} items share {OVERLAP} tokens in a row with the corpus: {', '.join(found[:5])}, ..."
        )
    for line in facts["probes_left_out"]:
        say(f"  left out: {line}")


if __name__ == "__main__":
    main()
