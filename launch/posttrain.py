"""Unlearn some of the inserted items, compare with the leave-out twin: ``python launch/posttrain.py +experiment=NAME``.

``posttrain=npo`` names the method. What the run lacks is made first. ``posttrained/<forget set>/`` of the run holds
the leave-out twin (the same run without the forget set's exposures), every method that was tried on this forget set,
their scores, and the comparison.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from palimpsest.analysis.report import posttrained
from palimpsest.data import artifact
from palimpsest.data import prepare as corpus
from palimpsest.data.artifact import json_digest
from palimpsest.data.errors import UserError, nearest
from palimpsest.insertion import audit as audits
from palimpsest.insertion import leave_out
from palimpsest.insertion import plan as plans
from palimpsest.insertion.design import clusters
from palimpsest.launch import missing_stages
from palimpsest.launch import train as training
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.inputs import ledger_of, open_order
from palimpsest.launch.process import locked, say
from palimpsest.launch.program import program
from palimpsest.launch.score import checkpoints_of, score_runs
from palimpsest.pretrain import saved

if TYPE_CHECKING:
    from palimpsest.data.mixture import Windows
    from palimpsest.pretrain.config import PosttrainConfig
    from palimpsest.pretrain.posttraining.texts import Texts

LEAVE_OUT, RETRAIN = "leave_out", "retrain"
CURVATURE_WINDOWS = 256
"""Windows of the corpus over which an edit measures curvature."""


def forget_set(experiment: Experiment, plan: plans.Plan) -> list[str]:
    """Ids of the items that ``posttrain.forget`` draws.

    Raises:
        UserError: if they are one cluster, about which no interval can be given.
    """
    forget = experiment.posttrain.forget
    drawn = leave_out.forget_set(plan, forget.seed, forget.share, forget.families, forget.doses)
    units, _ = clusters(plan.items.filter(pl.col("item_id").is_in(drawn.implode())))
    if len(set(units.tolist())) < 2:
        raise UserError(
            f"posttrain.forget.share={forget.share:g} draws one item, or one cluster of items; an interval needs two: "
            "raise it"
        )
    return drawn.to_list()


def place_of(experiment: Experiment, forgotten: list[str]) -> Path:
    """Directory of everything about a forget set."""
    return experiment.directory / "posttrained" / f"forget-{json_digest(forgotten)[:8]}"


def name_of(experiment: Experiment) -> str:
    """Name of a post-trained run: its method and a digest of its settings."""
    from palimpsest.pretrain.posttraining import trainer

    settings = [trainer.identity(experiment.posttrain), experiment.posttrain.after]
    return f"{experiment.posttrain.method}-{json_digest(settings)[:8]}"


def full_name(place: Path, given: str, setting: str) -> str:
    """Name of a run in a forget set's directory, of which only the method may be given; ``given`` if there is none.

    Raises:
        UserError: if several runs are of that method.
    """
    if (place / given).is_dir():
        return given
    meant = [name for name in names_in(place) if name.rpartition("-")[0] == given]
    if len(meant) > 1:
        raise UserError(f"{setting}={given}: there are {', '.join(meant)}; give the whole name of one")
    return meant[0] if meant else given


def names_in(place: Path) -> list[str]:
    """The runs in a forget set's directory: the leave-out twin and the post-trained ones."""
    return sorted(path.parent.name for path in place.glob("*/checkpoints"))


def with_parent(experiment: Experiment, place: Path) -> Experiment:
    """The experiment with the full name of ``posttrain.after``, where only its method is given.

    Raises:
        UserError: if several runs are of that method.
    """
    after = experiment.posttrain.after
    if after is None:
        return experiment
    name = full_name(place, after, "posttrain.after")
    return replace(experiment, posttrain=replace(experiment.posttrain, after=name))


def directory_of(experiment: Experiment, plan: plans.Plan) -> Path:
    """Directory of the run that ``run`` names, which is not one of the pair: ``leave_out``, or a post-trained run.

    Raises:
        UserError: if the forget set has no such run, or several are of the method that is given.
    """
    forgotten = forget_set(experiment, plan)
    if experiment.run == LEAVE_OUT and _everything(plan, forgotten):
        return experiment.directory / "twin"
    place = place_of(experiment, forgotten)
    name = full_name(place, experiment.run, "run")
    if not (place / name / "checkpoints").is_dir():
        known = nearest(experiment.run, ["perturbed", "twin", *names_in(place)])
        raise UserError(
            f"run={experiment.run}: there is no such run{known} (in {place}; of another forget set: repeat its "
            "posttrain.forget)"
        )
    return place / name


def _everything(plan: plans.Plan, forgotten: list[str]) -> bool:
    """True if all inserted items are to be forgotten, so that the twin is the leave-out twin."""
    return set(forgotten) == set(plan.items.filter(plan.items["dose"] > 0)["item_id"])


def train_twin(experiment: Experiment, plan: plans.Plan, forgotten: list[str], place: Path) -> Path:
    """Train the leave-out twin, or find the twin where everything inserted is forgotten.

    Returns:
        Directory of the run.
    """
    if _everything(plan, forgotten):
        if not _trained(experiment, experiment.directory / "twin"):
            training.train(experiment, "twin")
        return experiment.directory / "twin"
    directory = place / LEAVE_OUT
    directory.mkdir(parents=True, exist_ok=True)
    with artifact.held(place / "plan"):
        planned = leave_out.write(plan, forgotten, place / "plan")
    if not _trained(experiment, directory):
        training.train(experiment, LEAVE_OUT, plan=planned, directory=directory)
    _audit(experiment, planned, directory, place / "audit")
    return directory


def _audit(experiment: Experiment, planned: plans.Plan, directory: Path, place: Path) -> None:
    """Prove that the leave-out twin consumed its plan, and outside it what the twin consumed.

    Raises:
        UserError: if it did not.
    """
    steps = experiment.train.end
    consumed, _ = ledger_of(directory, steps)
    twin = experiment.directory / "twin"
    other = ledger_of(twin, steps)[0] if twin.exists() else None
    inputs = {
        "plan": planned.digest,
        LEAVE_OUT: consumed.head,
        "twin": other.head if other else "",
    }
    done, _ = artifact.reuse(place, kind=audits.KIND, schema_version=audits.VERSION, config={}, inputs=inputs)
    if done is None:
        tokenizer, order = corpus.load_tokenizer(experiment.corpus_directory), open_order(experiment)
        with artifact.writing(
            place, kind=audits.KIND, schema_version=audits.VERSION, config={}, inputs=inputs
        ) as draft:
            found = audits.audit(planned, consumed, other, order, tokenizer)
            artifact.write_json(draft.path / "audit.json", found)
    result = json.loads((place / "audit.json").read_text())
    if done is None:
        say(f"audit of the leave-out twin: {result['verdict']}")
    if result["verdict"] != "PASS":
        raise UserError(
            f"the leave-out twin, which is trained without the forget set, did not read what was planned: "
            f"{result['failures'][0]} ({place / 'audit.json'} has all failures); delete {directory} and run the same "
            "command again"
        )


def texts_of(
    experiment: Experiment, plan: plans.Plan, forgotten: list[str], order: Windows, eod: int
) -> tuple[Texts, Texts]:
    """Texts of the forget set and of the retain set.

    Raises:
        UserError: if there is nothing to retain.
    """
    from palimpsest.pretrain.posttraining import texts

    config, length = experiment.posttrain, experiment.train.sequence_length
    forget = texts.of_items(plan, forgotten, length, eod)
    if config.retain == "corpus":
        return forget, texts.of_corpus(order, plan, max(1, config.steps) * config.rows, config.seed)
    others = plan.items.filter((plan.items["dose"] > 0) & ~plan.items["item_id"].is_in(forgotten))
    if others.is_empty():
        raise UserError(
            f"posttrain.retain={config.retain}: everything inserted is in the forget set; set posttrain.retain=corpus"
        )
    if config.retain == "questions":
        return forget, texts.of_questions(plan, forgotten, length, eod)
    return forget, texts.of_items(plan, others["item_id"].to_list(), length, eod)


def posttrain(experiment: Experiment, plan: plans.Plan, forgotten: list[str], place: Path) -> None:
    """Apply the method, from its last checkpoint on."""
    from palimpsest.pretrain import parallel
    from palimpsest.pretrain.posttraining import editor, texts
    from palimpsest.pretrain.posttraining.edits import EDITS
    from palimpsest.pretrain.posttraining.trainer import Posttrainer
    from palimpsest.pretrain.telemetry import JsonLines

    directory = place / name_of(experiment)
    before = experiment.directory / "perturbed"
    if (after := experiment.posttrain.after) is not None:
        before = place / after
    steps = saved.finished(before / "checkpoints")
    if not steps:
        raise UserError(
            f"posttrain.after={after}: there are no checkpoints in {before / 'checkpoints'}"
            if after
            else f"there are no checkpoints in {before / 'checkpoints'}; run launch/train.py first"
        )
    facts = artifact.read(
        experiment.corpus_directory, kind=corpus.KIND, schema_version=corpus.SCHEMA_VERSION
    ).facts
    settings, _ = training.settings_of(experiment)
    config = experiment.posttrain
    with (
        parallel.start(
            experiment.parallel, experiment.runtime, deterministic=experiment.train.deterministic
        ) as world,
        contextlib.ExitStack() as stack,
    ):
        if world.main:
            stack.enter_context(locked(directory))
        order = open_order(experiment)
        forget, retain = texts_of(experiment, plan, forgotten, order, facts["eod"])
        refusals = None
        if config.method == "dpo":
            forget = texts.answers(forget, 0.5)
            tokenizer = corpus.load_tokenizer(experiment.corpus_directory)
            refusals = texts.refused(forget, tokenizer.encode(config.refusal).tolist(), facts["eod"])
        common: dict[str, Any] = {
            "parent": before / "checkpoints",
            "step": steps[-1],
            "vocab_size": facts["vocab_size"],
            "inputs": {"plan": plan.digest, "order": order.identity},
            "directory": directory,
        }
        if config.method in EDITS:
            corpus_windows = texts.of_corpus(order, plan, CURVATURE_WINDOWS, config.seed)
            clozes = texts.of_clozes(plan, forgotten, experiment.train.sequence_length, facts["eod"])
            if clozes is not None:
                refusal = corpus.load_tokenizer(experiment.corpus_directory).encode(config.refusal).tolist()
                clozes = texts.refused(clozes, refusal, facts["eod"])
            editor.apply(settings, config, world, corpus=corpus_windows, facts=clozes, **common)
            return
        trainer = Posttrainer(
            settings,
            config,
            world,
            forget=forget,
            retain=retain,
            refusals=refusals,
            student=steps[0] if config.student == "first" else None,
            **common,
        )
        written = JsonLines(directory / "metrics.jsonl", trainer.step) if world.main else None
        if written is not None:
            stack.callback(written.close)
        trainer.run(lambda record: None if written is None else written.write(record))


def retrain(experiment: Experiment, plan: plans.Plan, forgotten: list[str], place: Path) -> None:
    """Exact unlearning: continue from the last checkpoint before the forget set's first exposure, and train to the end
    without it.
    """
    rows = pl.Series(plan.items["item_id"].is_in(forgotten).arg_true()).implode()
    first = plan.exposures.filter(pl.col("item").is_in(rows))["position"].min()
    assert isinstance(first, int)
    before = experiment.directory / "perturbed" / "checkpoints"
    step = max(one for one in saved.finished(before) if one <= first // experiment.train.global_batch_size)
    with artifact.held(place / "plan"):
        planned = leave_out.write(plan, forgotten, place / "plan")
    start = str(saved.path_of(before, step))
    branch = replace(experiment, train=replace(experiment.train, start_from=start))
    say(f"retrain: from step {step} of {experiment.train.end}")
    training.train(branch, RETRAIN, plan=planned, directory=place / RETRAIN)


def compared(experiment: Experiment) -> tuple[Path, str] | None:
    """Directory of the comparison that a post-trained run is in, and the run's name; None if it is not finished."""
    if not (experiment.directory / "plan" / artifact.MANIFEST).is_file():
        return None
    plan = plans.read(experiment.directory / "plan")
    place = place_of(experiment, forget_set(experiment, plan))
    experiment = with_parent(experiment, place)
    method = experiment.posttrain.method
    name = RETRAIN if method == RETRAIN else name_of(experiment)
    summary = place / "report" / "summary.json"
    if not summary.is_file() or name not in json.loads(summary.read_text()):
        return None
    return place / "report", name


def compare(
    experiment: Experiment, plan: plans.Plan, forgotten: list[str], place: Path, twin: Path
) -> dict[str, Any]:
    """Score every run of the forget set, and write the comparison to ``report/`` beside them; its summary."""
    runs = {"perturbed": experiment.directory / "perturbed", LEAVE_OUT: twin}
    methods = [place / name for name in names_in(place) if name != LEAVE_OUT]
    runs |= {path.name: path for path in methods}
    last = ("perturbed", LEAVE_OUT)
    score_runs(
        experiment,
        plan,
        {
            name: partial(checkpoints_of, experiment, path / "checkpoints", last_only=name in last)
            for name, path in runs.items()
        },
        place / "scores",
    )
    ends = ends_of(runs)
    origins = {path.name: origin(path, ends) for path in methods}
    return posttrained.write_report(place, plan, forgotten, origins, asdict(experiment.posttrain))


def ends_of(runs: Mapping[str, Path]) -> dict[str, str]:
    """Digest of each run's last checkpoint -> the run's name."""
    ends = {
        name: (path / "checkpoints", saved.finished(path / "checkpoints")[-1:]) for name, path in runs.items()
    }
    # Where two runs have the same checkpoint, the first one is its origin.
    return {saved.read(at, steps[0]).digest: name for name, (at, steps) in reversed(ends.items()) if steps}


def origin(run: Path, ends: Mapping[str, str]) -> posttrained.Origin:
    """Lineage of a post-trained run, by the digest of the checkpoint that it started from.

    Args:
        run: its directory.
        ends: of the runs that it may have started from, see :func:`ends_of`.
    """
    checkpoints = run / "checkpoints"
    steps = saved.finished(checkpoints)
    manifest = saved.read(checkpoints, steps[0])
    if run.name == RETRAIN:
        return posttrained.Origin(RETRAIN, "perturbed", steps[-1] - steps[0])
    parent = ends.get(manifest.inputs.get("parent", ""), "a run that is gone")
    method = manifest.config["posttrain"]["method"]
    # An edit takes no gradient steps.
    return posttrained.Origin(method, parent, 0 if manifest.config["posttrain"].get("edit") else steps[-1])


def lineage(experiment: Experiment, run: Path) -> tuple[str, ...]:
    """Post-trainings that led to a post-trained run, the last one first, such as ``npo, 20 steps, from perturbed``."""
    place = run.parent
    ends = ends_of(
        {
            "perturbed": experiment.directory / "perturbed",
            **{name: place / name for name in names_in(place)},
        }
    )
    found: list[str] = []
    while True:
        last = origin(run, ends)
        taken = f"{last.cost} step{'' if last.cost == 1 else 's'}" if last.cost else "an edit"
        found.append(f"{last.method}, {taken}, from {last.parent}")
        if last.parent in ("perturbed", LEAVE_OUT, RETRAIN) or last.parent not in ends.values():
            return tuple(found)
        run = place / last.parent


def dry_run(experiment: Experiment) -> Iterator[str]:
    """Lines of ``dry_run=true``: the run, the forget set and the method."""
    config = experiment.posttrain
    yield f"the run {experiment.directory}, where it is missing"
    yield (
        f"forget set: {config.forget.share:.0%} of the inserted items of each arm and family"
        + ("" if config.forget.share < 1 else "; the twin is the leave-out twin")
    )
    low = f", by updates of rank {config.rank}" if config.rank is not None else ""
    yield f"{config.method}: {config.steps} steps of {config.rows} texts of either set that it reads{low}"


def work(experiment: Experiment) -> int:
    """Make what is missing, post-train, score and compare; status of the comparison."""
    _check_method(experiment.posttrain)
    missing_stages.make(experiment)
    plan = plans.read(experiment.directory / "plan")
    forgotten = forget_set(experiment, plan)
    if not _trained(experiment, experiment.directory / "perturbed"):
        training.train(experiment, "perturbed")
    place = place_of(experiment, forgotten)
    experiment = with_parent(experiment, place)
    say(f"forget set: {len(forgotten)} items, in {place}")
    twin = train_twin(experiment, plan, forgotten, place)
    if experiment.posttrain.method == RETRAIN:
        directory = place / RETRAIN
        if not _trained(experiment, directory):
            retrain(experiment, plan, forgotten, place)
    else:
        directory = place / name_of(experiment)
        if experiment.posttrain.steps not in saved.finished(directory / "checkpoints"):
            posttrain(experiment, plan, forgotten, place)
    say(f"{directory.name}: {saved.finished(directory / 'checkpoints')[-1]} steps")
    if "WORLD_SIZE" in os.environ:
        # One process scores, in an environment without torchrun's; it finds everything trained.
        return 0 if int(os.environ.get("RANK", "0")) else missing_stages.run_alone("posttrain")
    summary = compare(experiment, plan, forgotten, place, twin)
    say(summary[directory.name])
    say(f"report: {place / 'report' / 'report.html'}")
    return 0


def _check_method(config: PosttrainConfig) -> None:
    """Raise a ``UserError`` unless there is such a method, and it takes ``rank``: before anything is trained."""
    from palimpsest.pretrain.posttraining.edits import EDITS
    from palimpsest.pretrain.posttraining.methods import METHODS

    known = [*METHODS, *EDITS, RETRAIN]
    if config.method not in known:
        raise UserError(
            f"posttrain.method={config.method}: there is no such method{nearest(config.method, known)}"
        )
    if config.rank is not None and config.method not in METHODS:
        why = "trains all weights" if config.method == RETRAIN else "is an edit, which trains nothing"
        raise UserError(f"posttrain.rank={config.rank}: {config.method} {why}; leave it out")


def _trained(experiment: Experiment, run: Path) -> bool:
    """True if a training has its last checkpoint."""
    return experiment.train.end in saved.finished(run / "checkpoints")


main = program(work, dry_run=dry_run)

if __name__ == "__main__":
    main()
