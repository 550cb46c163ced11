"""A plan's items for other tools: ``python launch/export_items.py +experiment=quickstart``.

lm-eval tasks, a membership benchmark for Fast-MIA and MIMIR, forget and retain sets for open-unlearning.
"""

from __future__ import annotations

from palimpsest.data import artifact
from palimpsest.data.artifact import Manifest
from palimpsest.insertion import item_sets
from palimpsest.insertion import plan as plans
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.process import say
from palimpsest.launch.program import program

KIND = "item sets"
VERSION = 1


def write(experiment: Experiment) -> Manifest:
    """Write the items as files of three other tools (``insertion.item_sets``) into the directory ``items/`` beside the
    plan.

    Returns:
        The manifest of ``items/``.

    Raises:
        UserError: if there is no plan.
    """
    plan = plans.read(experiment.directory / "plan")
    with artifact.writing(
        experiment.directory / "items",
        kind=KIND,
        schema_version=VERSION,
        config={"seed": experiment.seed},
        inputs={"plan": plan.digest},
    ) as draft:
        draft.facts.update(
            item_sets.write(plan, draft.path, name=experiment.experiment, seed=experiment.seed)
        )
    assert draft.manifest is not None
    return draft.manifest


@program
def main(experiment: Experiment) -> None:
    """Write the items, and print their directory and number."""
    facts = write(experiment).facts
    place = experiment.directory / "items"
    say(f"{place / 'lm_eval'}: {len(facts['tasks'])} tasks, {sum(facts['tasks'].values()):,} questions")
    if facts["choices_left_out"]:
        say(
            f"{facts['choices_left_out']:,} choices are left out: lm_eval cannot ask them (lm_eval/README.md)"
        )
    say(f"{place / 'membership'}: {facts['members']:,} members, {facts['nonmembers']:,} non-members")
    say(f"{place / 'open_unlearning'}: {facts['forget']:,} items to forget, {facts['retain']:,} to retain")


if __name__ == "__main__":
    main()
