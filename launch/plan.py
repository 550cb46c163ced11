"""Which text goes where, and when: ``python launch/plan.py +experiment=quickstart``.

``show`` explains a finished plan; ``family=NAME show=5`` prints the first items of a family with their probes;
``power=true`` says what the design can show. Where copyright traps want a
reference model that is ``trained`` here, it is.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl

from palimpsest.data import artifact
from palimpsest.data import prepare as corpus
from palimpsest.data.artifact import Manifest
from palimpsest.data.errors import UserError
from palimpsest.data.mixture import Mixture, Windows
from palimpsest.data.order import Order
from palimpsest.data.tokenizer import Tokenizer, TokenizerConfig, build
from palimpsest.insertion import assemble, explain
from palimpsest.insertion import plan as plans
from palimpsest.insertion.families import registry
from palimpsest.insertion.families.registry import OVERLAP
from palimpsest.insertion.ledger import Ledger
from palimpsest.insertion.settings import InsertionConfig
from palimpsest.launch.config import Experiment, program, say, take
from palimpsest.launch.prepare import prepare
from palimpsest.launch.reference import trained

_NO_EPOCH = 1 << 16
"""In place of the number of an epoch: the reference model's order is no epoch's."""


def open_order(experiment: Experiment) -> Windows:
    """What the experiment reads: one epoch of its corpus, or its mixture.

    Raises:
        UserError: if a corpus is not prepared, or they do not go together.
    """
    train, mixture = experiment.train, experiment.mixture
    corpora = [
        [
            _order(directory, train.sequence_length, _seed(train.seed, epoch))
            for epoch in range(mixture.epochs)
        ]
        for _, directory in experiment.corpora.values()
    ]
    if mixture.plain:
        return corpora[0][0]
    return Mixture(corpora, mixture.stretches(train.steps, train.global_batch_size))


def _order(directory: Path, sequence_length: int, seed: int) -> Order:
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


def _seed(seed: int, epoch: int) -> int:
    """Of an epoch's order: another one for each, and none that a run with a seed nearby begins with."""
    return (seed + 1_000_003 * epoch) % 2**32


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
        inputs=plans.plan_inputs(experiment.insertion, order),
    )
    if finished is not None:
        say(f"reusing {directory}")
        return finished
    if differences and (experiment.directory / "perturbed").exists():
        raise UserError(
            f"{directory} no longer fits ({differences[0]}), but training has begun with it; choose another "
            f"name=... or remove {experiment.directory}"
        )
    return make(experiment, directory)


def make(experiment: Experiment, directory: Path) -> Manifest:
    """Make the experiment's plan in a directory, whatever is there.

    Raises:
        UserError: see ``insertion.plan.create``.
    """
    tokenizer = corpus.load_tokenizer(experiment.corpus_directory)
    return plans.create(
        experiment.insertion,
        experiment.shape,
        order=open_order(experiment),
        tokenizer=tokenizer,
        heldout=_heldout(experiment),
        directory=directory,
        reference=_references(experiment, tokenizer),
        start_from=experiment.train.start_from,
    )


def show(experiment: Experiment, wanted: Mapping[str, str]) -> None:
    """Explain the finished plan: a summary, ``item=ID`` or ``step=S``; with ``checkpoint=S``, what that one had seen.

    With ``ledger=true``, of an item or step what the perturbed run's ledger has, up to its last checkpoint.

    Raises:
        UserError: if there is no plan, item, step, checkpoint or ledger like that.
    """
    made = plans.read(experiment.directory / "plan")
    if wanted.get("ledger", "true") != "true" or (
        "ledger" in wanted and not wanted.keys() & {"item", "step"}
    ):
        raise UserError(f"ledger={wanted['ledger']}: write item=ID ledger=true, or step=S ledger=true")
    if not wanted.keys() & {"item", "step"}:
        lines = explain.summary(made)
    else:
        order = open_order(experiment)
        tokenizer = corpus.load_tokenizer(experiment.corpus_directory)
        consumed = _consumed(experiment, made) if "ledger" in wanted else None
        if consumed is not None and consumed.skipped:
            say(
                f"skipped, so that nothing was learnt from them: steps {', '.join(map(str, consumed.skipped))}"
            )
        if "item" in wanted:
            until = _number(wanted, "checkpoint") if "checkpoint" in wanted else None
            if consumed is not None:
                made = explain.consumed(made, consumed)
                until = consumed.steps if until is None else until
            before = plans.earlier(made)
            lines = explain.item(made, wanted["item"], order, tokenizer, until=until, earlier=before)
        else:
            places = [directory for _, directory in experiment.corpora.values()]
            if consumed is not None:
                say(explain.same(made, consumed, _number(wanted, "step"), order))
            lines = explain.step(made, _number(wanted, "step"), order, tokenizer, places)
    for line in lines:
        say(line)


def _consumed(experiment: Experiment, made: plans.Plan) -> Ledger:
    """The perturbed run's ledger.

    Raises:
        UserError: if there is none, or it is of another plan.
    """
    from palimpsest.launch.audit import ledger_of

    found, _ = ledger_of(experiment.directory / "perturbed", 0)
    if found.plan != made.digest:
        raise UserError(
            f"the ledger of {experiment.directory / 'perturbed'} is of another plan; run launch/audit.py"
        )
    return found


def _number(wanted: Mapping[str, str], key: str) -> int:
    if not wanted[key].isdigit():
        raise UserError(f"{key}={wanted[key]} must be a step number")
    return int(wanted[key])


def power(experiment: Experiment, wanted: float) -> None:
    """Print what each arm can show, and what a wanted standardised effect would take. Reads the design alone."""
    from palimpsest.analysis.statistics import power as powers

    if not 0 < wanted < 10:
        raise UserError(f"effect={wanted:g} must lie between 0 and 10 standard deviations")
    say(
        "smallest effects that show with power .8 at alpha .05 (two-sided), in standard deviations of a score"
    )
    for name, insertion in experiment.insertion.designs():
        if name:
            say(f"experiment {name}")
        _power_of(insertion, wanted)
    each, pairs = powers.items_for_effect(wanted), powers.pairs_for_effect(wanted)
    say(
        f"an effect of {wanted:g} takes {math.ceil(each):,} items with as many controls, or {math.ceil(pairs):,} items "
        "against their own twins"
    )


def _power_of(insertion: InsertionConfig, wanted: float) -> None:
    from palimpsest.analysis.statistics import power as powers

    arms = insertion.arms()
    alike: dict[tuple[int, ...], list[str]] = {}
    for family in insertion.families:
        alike.setdefault(tuple(insertion.arm_sizes(family)), []).append(family)
    for sizes, families in alike.items():
        say(f"{', '.join(families)}: {sizes[0]:,} items are never inserted")
        treated = [(arm, size) for (arm, _), size in zip(arms[1:], sizes[1:], strict=True)]
        found = powers.of_arms([size for _, size in treated], sizes[0], wanted)
        width = max(len(arm) for arm, _ in treated)
        head = (
            f"{'from dose 0':>11}  {f'of {len(found)} arms':>10}  {'from its twin':>13}  {'rate above 0':>12}"
        )
        say(f"  {'arm':{width}}  {'items':>6}  {head}  {f'items for {wanted:g}':>14}")
        for (arm, size), row in zip(treated, found, strict=True):
            needed = "more controls" if math.isinf(row.needed) else f"{math.ceil(row.needed):,}"
            say(
                f"  {arm:{width}}  {size:6,}  {row.effect:11.3f}  {row.corrected:10.3f}  {row.paired:13.3f}"
                f"  {row.rate:12.3f}  {needed:>14}"
            )


def _effect(asked: Mapping[str, str]) -> float:
    if asked["power"] != "true":
        raise UserError(f"power={asked['power']}: write power=true, or leave it out")
    given = asked.get("effect", "0.2")
    try:
        return float(given)
    except ValueError:
        raise UserError(
            f"effect={given} must be a number of standard deviations, such as effect=0.2"
        ) from None


def show_family(experiment: Experiment, name: str) -> None:
    """Print the first ``show`` items of a family with their probes.

    Of the experiment's corpus where that is prepared; else without held-out documents, and with bytes for tokens. A
    reference model that is to be trained here needs the corpus: it is prepared.

    Raises:
        UserError: for an unknown family, or one that needs the corpus where there is none.
    """
    count = 5 if experiment.show is None else experiment.show
    if count < 1:
        raise UserError(f"show={count} must be at least 1")
    designs = [one for _, one in experiment.insertion.designs()]
    registry.check(name, {})
    own = next((one for one in designs if name in one.families), None)
    if own is None:
        raise UserError(
            f"family={name} is none of the experiment's: {', '.join(f for one in designs for f in one.families)}"
        )
    given = own.families
    if given[name].get("path") == registry.TRAINED:
        prepare(experiment)
    prepared = (experiment.corpus_directory / artifact.MANIFEST).is_file()
    if prepared:
        tokenizer, heldout = corpus.load_tokenizer(experiment.corpus_directory), _heldout(experiment)
        opened = _references(experiment, tokenizer)
        family_context = assemble.family_context(own, open_order(experiment), tokenizer, heldout, opened)
    else:
        tokenizer = build(iter([]), TokenizerConfig(vocab_size=257))
        family_context = registry.FamilyContext(
            own.seed, tokenizer, [], reference=_references(experiment, tokenizer)
        )
    for line in explain.family(
        registry.make(name, family_context, count, given[name]), family_context.tokenizer
    ):
        say(line)


def _references(experiment: Experiment, tokenizer: Tokenizer) -> Callable[[str], registry.Reference]:
    """What opens reference models, and trains the one that is made here; torch is loaded for them alone."""

    def opened(path: str) -> registry.Reference:
        from palimpsest.pretrain.reference import open_reference

        if path == registry.TRAINED:
            seed = _seed(experiment.train.seed, _NO_EPOCH)
            order = _order(experiment.corpus_directory, experiment.train.sequence_length, seed)
            path = str(trained(experiment, order, tokenizer.vocab_size))
        return open_reference(path, tokenizer)

    return opened


def _heldout(experiment: Experiment) -> list[tuple[str, str]]:
    """(digest, text) of the held-out documents."""
    text = pl.read_parquet(experiment.corpus_directory / corpus.HELDOUT, columns=["digest", "text"])
    return list(text.unique("digest", maintain_order=True).iter_rows())


def _settings_of(family: str) -> None:
    """Complete the command line of ``family=NAME``: without an experiment, those of ``conf/insertion/NAME.yaml``."""
    given = {word.partition("=")[0] for word in sys.argv}
    if "+experiment" in given:
        return
    alone = family in registry.names() and "insertion" not in given
    sys.argv[1:1] = [*([f"insertion={family}"] if alone else []), "+experiment=quickstart"]


def main() -> None:
    """Plan and summarise; or ``show``, ``family=NAME`` or ``power=true``, which have settings of their own."""
    if asked := take("family"):
        _settings_of(asked["family"])
        program(lambda experiment: show_family(experiment, asked["family"]))()
    elif asked := take("power", "effect"):
        program(lambda experiment: power(experiment, _effect(asked)))()
    elif asked := take("show", "item", "step", "checkpoint", "ledger", word=True):
        program(lambda experiment: show(experiment, asked))()
    else:
        program(_plan)()


def _plan(experiment: Experiment) -> None:
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
    if found := facts["items_alike"]:
        say(f"  {len(found)} pairs of items share {OVERLAP} tokens in a row with each other: {found[0]}, ...")
    for line in facts["probes_left_out"]:
        say(f"  left out: {line}")


if __name__ == "__main__":
    main()
