"""The perturbed corpus for other trainers: ``python launch/write_corpus.py +experiment=quickstart``.

``format=megatron`` (the default) writes token files, ``format=jsonl`` one line per window in training order.
"""

from __future__ import annotations

from palimpsest.data import artifact
from palimpsest.data.artifact import Manifest
from palimpsest.insertion import interchange
from palimpsest.insertion import plan as plans
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.inputs import open_order
from palimpsest.launch.process import say
from palimpsest.launch.program import program

KIND = "perturbed corpus"
VERSION = 1


def write(experiment: Experiment) -> Manifest:
    """Write ``corpus-<format>/`` next to the plan: the corpus with the plan applied.

    Raises:
        UserError: if there is no plan, or it was made for another corpus.
    """
    plan = plans.read(experiment.directory / "plan")
    order = open_order(experiment)
    plans.require_order(plan, order)
    form = experiment.format
    with artifact.writing(
        experiment.directory / f"corpus-{form}",
        kind=KIND,
        schema_version=VERSION,
        config={"format": form},
        inputs={"plan": plan.digest, "corpus": order.corpus_digest, "order": order.identity},
    ) as draft:
        draft.facts["windows_changed"] = len(interchange.touched(plan))
        if form == "megatron":
            exceptions = interchange.write_tokens(plan, order, draft.path)
            exceptions.write_parquet(draft.path / "exceptions.parquet")
            draft.facts["exceptions"] = len(exceptions)
            draft.facts["windows_with_exceptions"] = exceptions["position"].n_unique()
        else:
            draft.facts["lines"] = interchange.write_lines(plan, order, draft.path / "windows.jsonl")
    assert draft.manifest is not None
    return draft.manifest


@program
def main(experiment: Experiment) -> None:
    """Write the corpus, and print its directory and the exceptions."""
    facts = write(experiment).facts
    say(
        f"{experiment.directory / f'corpus-{experiment.format}'}: {facts['windows_changed']:,} windows changed"
    )
    if "exceptions" in facts:
        say(
            f"{facts['exceptions']:,} tokens of {facts['windows_with_exceptions']:,} windows differ from the overlay, "
            "where two windows share a token that one of them changes; exceptions.parquet lists them"
        )


if __name__ == "__main__":
    main()
