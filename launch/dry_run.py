"""Preview of the stages (``dry_run=true``): artefacts that each would make or reuse. Reads manifests; writes
nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from palimpsest.data import artifact
from palimpsest.data import prepare as corpus
from palimpsest.data.artifact import MANIFEST
from palimpsest.insertion import explain
from palimpsest.insertion import plan as plans
from palimpsest.launch import preconditions
from palimpsest.launch.experiment import Experiment
from palimpsest.pretrain import estimate, saved
from palimpsest.pretrain.config import padded_vocabulary

STAGES = ("prepare", "plan", "train perturbed", "train twin", "audit", "score", "report")


def stages(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Pairs of stage and its preview, for a whole run, in order."""
    yield (
        "prepare",
        "; ".join(
            f"{'reuse' if (place / MANIFEST).is_file() else 'make'} {place}"
            for _, place in experiment.corpora.values()
        ),
    )
    yield "plan", _plan(experiment)
    for which in ("perturbed", "twin"):
        yield f"train {which}", _training(experiment, which)
    place = experiment.directory
    yield "audit", f"{'make anew' if (place / 'audit' / MANIFEST).is_file() else 'make'} {place / 'audit'}"
    yield "score", _scores(experiment)
    out = experiment.report.out or place / "report"
    yield "report", f"{'make anew' if (out / MANIFEST).is_file() else 'make'} {out}"


def lines(experiment: Experiment) -> Iterator[str]:
    """Lines that describe the stages, and the inputs that are missing."""
    yield f"{experiment.experiment}, in {experiment.directory}; dry_run=true: nothing is run"
    width = max(map(len, STAGES))
    for stage, line in stages(experiment):
        yield f"  {stage:{width}}  {line}"
    for line in preconditions.missing(experiment):
        yield f"  missing: {line}"
    for line in preconditions.to_mend(experiment):
        yield f"  to mend: {line}"
    yield from cost(experiment)


def _plan(experiment: Experiment) -> str:
    place = experiment.directory / "plan"
    if not (place / MANIFEST).is_file():
        return f"make {place}"
    manifest = artifact.read(place, kind=plans.KIND, schema_version=plans.VERSION)
    asked = plans.plan_config(experiment.insertion, experiment.shape)
    different = artifact.differences(manifest, config=asked, inputs=manifest.inputs)
    return f"make anew {place} ({different[0]})" if different else f"reuse {place}"


def _training(experiment: Experiment, which: str) -> str:
    train, place = experiment.train, experiment.directory / which
    done = max(saved.finished(place / "checkpoints"), default=train.begin)
    steps = train.end - train.begin
    if done >= train.end:
        return f"reuse {place}, finished at step {train.end}"
    if done > train.begin:
        return f"go on in {place} from step {done} to {train.end}"
    ranks = _world_size(experiment)
    return f"make {place}: {steps} steps on {ranks} process{'es' if ranks > 1 else ''}"


def _scores(experiment: Experiment) -> str:
    train = experiment.train
    steps = [step for step in train.checkpoint_steps() if train.begin <= step <= train.end]
    places = [
        saved.path_of(experiment.directory / "scores" / which, step)
        for which in ("perturbed", "twin")
        for step in steps
    ]
    return (
        f"{len(places)} checkpoints, {sum((place / MANIFEST).is_file() for place in places)} of them scored"
    )


def vocabulary(experiment: Experiment) -> tuple[int, str]:
    """Vocabulary size before padding, and a text that names its source; needs no corpus."""
    vocab_size, known = experiment.corpus.tokenizer.vocab_size, "of the tokenizer to be trained"
    if experiment.corpus.tokenizer.kind != "train":
        vocab_size, known = experiment.model.tokenizer_size or vocab_size, f"of model={experiment.model.name}"
        if experiment.model.tokenizer_size is None:
            known = "assumed: the corpus is not prepared, and model.tokenizer_size is not set"
    if (experiment.corpus_directory / MANIFEST).is_file():
        manifest = artifact.read(
            experiment.corpus_directory, kind=corpus.KIND, schema_version=corpus.SCHEMA_VERSION
        )
        vocab_size, known = manifest.facts["vocab_size"], "of the prepared corpus"
    if experiment.model.rows(vocab_size) > vocab_size or known.startswith("assumed"):
        rows = experiment.model.rows(0)
        vocab_size, known = (rows, f"rows of model={experiment.model.name}") if rows else (vocab_size, known)
    return vocab_size, known


def cost(experiment: Experiment) -> Iterator[str]:
    """Parameters, memory, time and disk of the training, and the insertions; needs neither a corpus nor a GPU."""
    vocab_size, known = vocabulary(experiment)
    padded = padded_vocabulary(vocab_size)
    yield f"vocabulary: {vocab_size:,} ({known}), padded to {padded:,}"
    yield from estimate.summary(
        experiment.model,
        padded,
        experiment.train,
        experiment.parallel,
        world_size=_world_size(experiment),
        optimizer_sharded=experiment.optimizer.kind != "muon",
    )
    yield whole([experiment])
    if (experiment.directory / "plan" / MANIFEST).is_file():
        yield from explain.summary(plans.read(experiment.directory / "plan"))
    else:
        for name, design in experiment.insertion.designs():
            yield (
                f"{name or 'insertion'}: families {', '.join(design.families)}; doses {list(design.doses)}, items a "
                f"dose and family: {design.items_per_dose}; not planned yet (launch/plan.py)"
            )


def whole(experiments: Sequence[Experiment]) -> str:
    """Total cost of the experiments' pairs of runs, in one line: GPU hours, days, scoring, checkpoints."""
    costs = []
    for one in experiments:
        padded = padded_vocabulary(vocabulary(one)[0])
        tokens = _probe_tokens(one)
        costs.append(
            estimate.pair(
                one.model,
                padded,
                one.train,
                gpus=_world_size(one),
                probe_tokens=tokens,
                scoring_jobs=one.launcher.score_shares,
            )
        )
    return estimate.total(costs)


def _probe_tokens(experiment: Experiment) -> int:
    """Number of tokens of all probes: from the plan or, without a plan, estimated as one window per item and held-out
    passage.
    """
    place = experiment.directory / "plan"
    if (place / MANIFEST).is_file():
        return int(plans.read(place).probes["tokens"].list.len().sum())
    designs = [design for _, design in experiment.insertion.designs()]
    items = sum(sum(design.arm_sizes(family)) for design in designs for family in design.families)
    return (items + experiment.insertion.heldout_probes) * experiment.train.sequence_length


def _world_size(experiment: Experiment) -> int:
    """Number of ranks of one training: torchrun's, the SLURM launcher's, or the smallest that the topology allows."""
    launcher, least = experiment.launcher, experiment.parallel.min_world_size
    asked = launcher.nodes * launcher.processes if launcher.kind == "slurm" else 1
    ranks = int(os.environ.get("WORLD_SIZE", asked))
    return ranks if ranks % least == 0 else least


def of(stage: str) -> Callable[[Experiment], Iterator[str]]:
    """Lines of the dry run of one stage's program."""
    return lambda experiment: (f"{name}: {line}" for name, line in stages(experiment) if name == stage)
