"""The plan: which item goes into which window, when. ``python launch/plan.py +experiment=quickstart``.

``show`` explains a finished plan; ``family=NAME show=5`` prints the first items of a family with their probes;
``power=true`` says what the design can show. Where copyright traps want a
reference model that is ``trained`` here, it is.
"""

from __future__ import annotations

from pathlib import Path

from palimpsest.data import artifact
from palimpsest.data import prepare as corpus
from palimpsest.data.artifact import Manifest
from palimpsest.data.errors import UserError
from palimpsest.data.mixture import Windows
from palimpsest.insertion import explain
from palimpsest.insertion import plan as plans
from palimpsest.insertion.families.registry import OVERLAP
from palimpsest.launch import dry_run, power, preconditions, preview, recorded, show_plan
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.inputs import heldout, open_order
from palimpsest.launch.process import say
from palimpsest.launch.program import program, take
from palimpsest.launch.reference import references

_LISTED = 5  # lines shown of a longer list


def plan(experiment: Experiment) -> Manifest:
    """Make the experiment's plan, or reuse it.

    Raises:
        UserError: if it cannot be made, or if training has begun with another plan.
    """
    order = open_order(experiment)
    directory = experiment.directory / "plan"
    finished, differences = artifact.reuse(
        directory,
        kind=plans.KIND,
        schema_version=plans.VERSION,
        config=plans.plan_config(experiment.insertion, experiment.shape),
        inputs=_inputs(experiment, order, directory),
    )
    if finished is not None:
        say(f"reusing {directory}")
        recorded.record(experiment)
        return finished
    if differences and (experiment.directory / "perturbed").exists():
        raise UserError(
            f"{directory} no longer fits ({differences[0]}), but training has begun with it; choose another "
            f"name=... or remove {experiment.directory}"
        )
    manifest = make(experiment, directory)
    recorded.record(experiment)
    return manifest


def _inputs(experiment: Experiment, order: Windows, directory: Path) -> dict[str, str]:
    """Digests of the plan's inputs; for a file deleted since a plan was made, the digest recorded in that plan.

    Raises:
        UserError: if a file is missing, and there is no plan of these settings.
    """
    try:
        return plans.plan_inputs(experiment.insertion, order)
    except UserError as error:
        if not (directory / artifact.MANIFEST).is_file():
            raise
        manifest = plans.read(directory).manifest
        asked = plans.plan_config(experiment.insertion, experiment.shape)
        if artifact.differences(manifest, config=asked, inputs=manifest.inputs):
            raise
        say(f"{error}; the finished plan {directory} does without it")
        return {**manifest.inputs, "corpus": order.corpus_digest, "order": order.identity}


def make(experiment: Experiment, directory: Path) -> Manifest:
    """Make the experiment's plan in a directory, replacing an existing one.

    Raises:
        UserError: see ``insertion.plan.create``.
    """
    tokenizer = corpus.load_tokenizer(experiment.corpus_directory)
    return plans.create(
        experiment.insertion,
        experiment.shape,
        order=open_order(experiment),
        tokenizer=tokenizer,
        heldout=heldout(experiment),
        directory=directory,
        reference=references(experiment, tokenizer),
        start_from=experiment.train.start_from,
    )


def main() -> None:
    """Make and summarise the plan; or run ``show``, ``family=NAME`` or ``power=true``, which have their own
    settings.
    """
    if asked := take("family"):
        preview.complete(asked["family"])
        program(lambda experiment: preview.show_family(experiment, asked["family"]))()
    elif asked := take("power", "effect"):
        program(lambda experiment: power.power(experiment, power.effect_of(asked)))()
    elif asked := take("show", *show_plan.KEYS, word=True):
        program(lambda experiment: show_plan.show(experiment, asked))()
    else:
        program(_plan, dry_run=dry_run.of("plan"))()


def _plan(experiment: Experiment) -> None:
    preconditions.require_fit(experiment)
    facts = plan(experiment).facts
    say(f"plan {experiment.directory / 'plan'}")
    for line in explain.summary(plans.read(experiment.directory / "plan")):
        say(f"  {line}")
    say(f"  {facts['exposures_at_document_boundary']:,} exposures where a document begins")
    if "moved" in facts:
        say(
            f"  paired: {facts['exposures'] - facts['moved']:,} exposures are where insertion.paired_with has them, "
            f"{facts['moved']:,} had to move (plan/moved.parquet)"
        )
    for row in facts["balance"]:
        say(
            f"  balance of {row['covariate']}: largest difference {row['largest_standardised_difference']:.2f} sd, "
            f"p = {row['p']:.2f}"
        )
    for name, counts in facts["interventions"].items():
        apart = f", {counts['overlap']:,} left alone for overlapping others" if counts["overlap"] else ""
        say(
            f"  intervention {name}: {counts['places']:,} places{apart}, {counts['windows']:,} windows of the run"
        )
    for kind, said in (("findings", "in the plan nonetheless"), ("dropped", "replaced by others")):
        for name, lines in facts[kind].items():
            if lines:
                more = "" if len(lines) <= 5 else f", and {len(lines) - 5} more"
                say(f"  preflight: {name}: {len(lines)} items, {said}: {', '.join(lines[:5])}{more}")
    if pairs := facts["items_alike"]:
        say(f"  {len(pairs)} pairs of items share {OVERLAP} tokens in a row with each other: {pairs[0]}, ...")
    left_out = facts["probes_left_out"]
    for line in left_out[:_LISTED]:
        say(f"  left out: {line}")
    if left_out:
        say(
            f"questions lost: {len(left_out):,} of {facts['probes'] + len(left_out):,} probes are left out of the plan"
        )


if __name__ == "__main__":
    main()
