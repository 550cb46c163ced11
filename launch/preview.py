"""The first items of a family with their probes: ``palimpsest plan family=NAME show=5``."""

from __future__ import annotations

import sys

from palimpsest.data import artifact
from palimpsest.data import prepare as corpus
from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import TokenizerConfig, build
from palimpsest.insertion import assemble, explain
from palimpsest.insertion.families import registry
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.inputs import heldout, open_order
from palimpsest.launch.prepare import prepare
from palimpsest.launch.process import say
from palimpsest.launch.reference import references


def show_family(experiment: Experiment, name: str) -> None:
    """Print the first ``show`` items of a family with their probes.

    The experiment's corpus is used if it is prepared; otherwise there are no held-out documents, and tokens are bytes.
    A family with a reference model to be trained needs the corpus, which is then prepared.

    Raises:
        UserError: for an unknown family, or a family that needs a corpus if there is none.
    """
    count = 5 if experiment.show is None else experiment.show
    if count < 1:
        raise UserError(f"show={count} must be at least 1")
    designs = [one for _, one in experiment.insertion.designs()]
    registry.check(name, {})
    design = next((one for one in designs if name in one.families), None)
    if design is None:
        raise UserError(
            f"family={name} is not a family of the experiment; it has: "
            f"{', '.join(f for one in designs for f in one.families)}"
        )
    families = design.families
    if families[name].get("path") == registry.TRAINED:
        prepare(experiment)
    prepared = (experiment.corpus_directory / artifact.MANIFEST).is_file()
    if prepared:
        tokenizer = corpus.load_tokenizer(experiment.corpus_directory)
        opened = references(experiment, tokenizer)
        context = assemble.family_context(
            design, open_order(experiment), tokenizer, heldout(experiment), opened
        )
    else:
        tokenizer = build(iter([]), TokenizerConfig(vocab_size=257))
        context = registry.FamilyContext(
            design.seed, tokenizer, [], reference=references(experiment, tokenizer)
        )
    for line in explain.family(registry.make(name, context, count, families[name]), context.tokenizer):
        say(line)


def complete(family: str) -> None:
    """Complete the command line of ``family=NAME`` that names no experiment: ``insertion=NAME`` of the quickstart."""
    given = {word.partition("=")[0] for word in sys.argv}
    if "+experiment" in given or any("=" not in word for word in sys.argv[1:]):  # or a run's directory
        return
    alone = family in registry.names() and "insertion" not in given
    sys.argv[1:1] = [*([f"insertion={family}"] if alone else []), "+experiment=quickstart"]
