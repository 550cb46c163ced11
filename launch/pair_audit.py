"""Audit of a pair of runs against the plan, and validity of the stored audit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from palimpsest.analysis.metrics.order import order_test_within_epochs
from palimpsest.data import artifact
from palimpsest.data import prepare as corpus
from palimpsest.data.errors import UserError
from palimpsest.data.mixture import Windows, digest_of
from palimpsest.data.tokenizer import Tokenizer
from palimpsest.insertion import audit as audits
from palimpsest.insertion import ledger
from palimpsest.insertion import plan as plans
from palimpsest.insertion.audit import KIND, VERSION
from palimpsest.insertion.settings import RunShape
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.inputs import corpora, ledger_of, open_order
from palimpsest.launch.process import say


def inputs(experiment: Experiment) -> dict[str, str]:
    """Current digests of all inputs of an audit.

    Raises:
        UserError: if any input is missing or damaged.
    """
    plan = plans.read(experiment.directory / "plan")
    now = digest_of([manifest.digest for _, manifest in corpora(experiment)])
    perturbed, _ = ledger_of(experiment.directory / "perturbed", experiment.train.end)
    twin = ""
    if (experiment.directory / "twin").exists():
        twin = ledger_of(experiment.directory / "twin", experiment.train.end)[0].head
    return {"plan": plan.digest, "perturbed": perturbed.head, "twin": twin, "corpus": now}


def standing(experiment: Experiment) -> dict[str, Any] | None:
    """Result of the last audit; None if any of its inputs changed since."""
    directory = experiment.directory / "audit"
    if not (directory / artifact.MANIFEST).is_file():
        return None
    manifest = artifact.read(directory, kind=KIND, schema_version=VERSION)
    artifact.verify(directory, manifest)
    try:
        now = inputs(experiment)
    except UserError as error:
        say(f"the audit no longer holds: {error}")
        return None
    if manifest.inputs != now:
        say("the audit no longer holds: plan, corpus or ledgers changed since; run launch/audit.py again")
        return None
    result: dict[str, Any] = json.loads((directory / "audit.json").read_text(encoding="utf-8"))
    return result


def audit(experiment: Experiment) -> dict[str, Any]:
    """Audit the pair and write ``audit/audit.json``.

    Returns:
        ``verdict``, ``checks`` and ``failures``.
    """
    texts = corpora(experiment)
    digest = digest_of([manifest.digest for _, manifest in texts])
    plan = plans.read(experiment.directory / "plan")
    steps = experiment.train.end
    perturbed, last_checkpoint = ledger_of(experiment.directory / "perturbed", steps)
    twin = None
    paired: list[str] = []
    if (experiment.directory / "twin").exists():
        twin, other = ledger_of(experiment.directory / "twin", steps)
        paired = artifact.differences(other, config=last_checkpoint.config, inputs=other.inputs)
        paired += _same_weights(*(_first(experiment, which) for which in ("perturbed", "twin")))
    unchanged = audits.Audit()
    changed = []
    for place, manifest in texts:
        try:
            artifact.verify(place, manifest)
        except UserError as error:
            changed.append(str(error))
    unchanged.add("the corpus is unchanged since planning", changed, f"digest {digest[:12]}")
    if digest != plan.manifest.inputs["corpus"]:
        places = " and ".join(str(place) for place, _ in texts)
        raise UserError(
            f"{places} is not the corpus that {experiment.directory / 'plan'} was made for; put that "
            f"corpus back, or run launch/plan.py again"
        )
    if twin is not None:
        unchanged.add(
            "the twin differs in nothing but the plan", paired, "settings, and every weight at the first step"
        )
    if experiment.train.start_from is not None:
        unchanged.add(
            "the run began with the checkpoint that it names",
            *_start(experiment, last_checkpoint.inputs["start"]),
        )
    tokenizer, order = corpus.load_tokenizer(experiment.corpus_directory), open_order(experiment)
    if experiment.train.start_from is not None:
        if same := plans.same_order(plan):
            unchanged.add("what was planned was consumed before it, too", *_before(same, order, tokenizer))
        if len(same) < len(plans.history(plan)):
            begin = same[0].plan.shape.begin if same else plan.shape.begin
            moved = " and ".join(plan.manifest.facts["changed_at_start"]) or "order"
            unchanged.add(
                f"this proof begins at step {begin}",
                [],
                f"the steps before it read another {moved}: audit their run",
            )
    wrong, parts = _scores_at_fault(experiment, plan)
    if parts:
        unchanged.add("the scores are whole, and of these checkpoints", wrong, f"{parts} parts")
    result = audits.audit(plan, perturbed, twin, order, tokenizer, unchanged)
    if twin is not None and (scores := _scores(experiment, plan)) is not None:
        result["evidence"] = evidence(plan.items, perturbed.exposures, scores, plan.shape)
    with artifact.writing(
        experiment.directory / "audit",
        kind=KIND,
        schema_version=VERSION,
        config={},
        inputs={
            "plan": plan.digest,
            "perturbed": perturbed.head,
            "twin": twin.head if twin else "",
            "corpus": digest,
        },
    ) as draft:
        artifact.write_json(draft.path / "audit.json", result)
    return result


def _first(experiment: Experiment, which: str) -> Path:
    """A run's first checkpoint."""
    from palimpsest.pretrain import checkpoint

    return checkpoint.path_of(experiment.directory / which / "checkpoints", experiment.train.begin)


def _start(experiment: Experiment, digest: str) -> tuple[list[str], str]:
    """Failures of the check that a run began with the checkpoint of ``train.start_from``, and a description of the
    check.
    """
    from palimpsest.pretrain import checkpoint

    path = Path(str(experiment.train.start_from))
    if not (path / artifact.MANIFEST).is_file():  # pruned, perhaps
        return [], f"{path} is gone: only its digest {digest[:12]} is known"
    manifest = checkpoint.read(path.parent, experiment.train.begin)
    if manifest.digest != digest:
        return [f"{path} is not the checkpoint that the run began with"], str(path)
    artifact.verify(path, manifest)
    return _same_weights(_first(experiment, "perturbed"), path), f"{path}, every weight"


def _before(runs: list[plans.Before], order: Windows, tokenizer: Tokenizer) -> tuple[list[str], str]:
    """Failures of the audit of the earlier runs that a run continues, joined up to its start, and a description of the
    check.

    Raises:
        UserError: if a ledger or plan of these runs is missing or damaged.
    """
    whole = plans.concatenated(runs)
    tables, failures = [], []
    for k, before in enumerate(runs):
        past, last = ledger_of(before.directory, before.end)
        tables.append((past, before.end))
        if past.plan != (before.plan.digest if before.perturbed else ""):
            failures.append(f"{before.directory} consumed another plan than the one beside it")
        if k and last.inputs["start"] != (left := _digest_at(runs[k - 1].directory, past.begin)) and left:
            failures.append(
                f"{before.directory} did not begin with the checkpoint of {runs[k - 1].directory}"
            )
    joined = ledger.concatenated(tables, whole.digest)
    result = audits.audit(whole, joined, None, order, tokenizer)
    steps = f"steps {whole.shape.begin} to {whole.shape.steps - 1}"
    detail = f"{steps} of {len(runs)} {'run' if len(runs) == 1 else 'runs'}, {len(joined.windows):,} windows"
    return failures + result["failures"], f"{detail}, {len(whole.exposures):,} exposures"


def _digest_at(run: Path, step: int) -> str | None:
    """Digest of a run's checkpoint; None if it is gone."""
    from palimpsest.pretrain import checkpoint

    place = run / "checkpoints"
    return checkpoint.read(place, step).digest if step in checkpoint.finished(place) else None


def _same_weights(*paths: Path) -> list[str]:
    """Names of the tensors in which two checkpoints differ."""
    import torch

    from palimpsest.pretrain import checkpoint

    one, other = map(checkpoint.tensors, paths)
    if one.keys() != other.keys():
        return ["the checkpoints have different weights by name"]
    return [f"{name} differs at the first step" for name in one if not torch.equal(one[name], other[name])]


def _scores_at_fault(experiment: Experiment, plan: plans.Plan) -> tuple[list[str], int]:
    """Faults of the stored scores, and the number of their parts: damage, another plan, another checkpoint."""
    from palimpsest.analysis.scoring import scores as stored

    wrong, parts = [], 0
    for which in ("perturbed", "twin"):
        for place, manifest in stored.parts(experiment.directory / "scores" / which):
            parts += 1
            try:
                artifact.verify(place, manifest)
            except UserError as error:
                wrong.append(str(error))
            step = int(place.name.removeprefix("step_").partition("-")[0])
            digest = _digest_at(experiment.directory / which, step)
            if digest is not None and digest != manifest.inputs["checkpoint"]:
                wrong.append(f"{place} was scored at another checkpoint; run launch/score.py again")
            if manifest.inputs["items"] != plan.digest:
                wrong.append(f"{place} was scored with another plan; run launch/score.py again")
    return wrong, parts


def _scores(experiment: Experiment, plan: plans.Plan) -> pl.DataFrame | None:
    """All scores of the pair's whole texts, if both were scored with this plan: ``item_id``, ``run``, ``step``,
    ``loglik`` (nats).
    """
    from palimpsest.analysis.scoring import scores as stored

    places = [
        place
        for run in ("perturbed", "twin")
        for place in sorted((experiment.directory / "scores" / run).glob("step_*"))
    ]
    tables = []
    for place in places:
        manifest = artifact.read(place, kind=stored.KIND, schema_version=stored.VERSION)
        if manifest.inputs["items"] != plan.digest:
            return None
        artifact.verify(place, manifest)
        scores = pl.read_parquet(place / stored.FILE, columns=["probe_id", "logprob"])
        step = pl.lit(manifest.facts["step"], dtype=pl.Int64)
        tables.append(scores.with_columns(run=pl.lit(place.parent.name), step=step))
    if {place.parent.name for place in places} != {"perturbed", "twin"}:
        return None
    verbatim = plan.probes.filter(pl.col("kind") == "verbatim").select("probe_id", "item_id")
    loglik = pl.col("logprob").list.sum().alias("loglik")
    return pl.concat(tables).join(verbatim, on="probe_id").select("item_id", "run", "step", loglik)


def evidence(
    items: pl.DataFrame, exposures: pl.DataFrame, scores: pl.DataFrame, shape: RunShape
) -> dict[str, float] | None:
    """Test of the exposures' order by the weights, independent of the ledger (Kuditipudi et al., 2025).

    At the checkpoint nearest to the middle of the run, items whose last exposure was more recent should have gained
    more over the twin, and items not yet exposed least. Ranks are compared inside each family and dose. If the ledger's
    order were false, the correlation would be 0.

    Args:
        items: ``item_id``, ``family``, ``dose``.
        exposures: exposures of the ledger: ``position``, ``item_id``.
        scores: ``item_id``, ``run``, ``step``, ``loglik``.
        shape: shape of the run.

    Returns:
        ``checkpoint``, ``rho`` with 95 % limits ``low`` and ``high``, two-sided ``p``, ``items``; None if no items can
        be compared.
    """
    shared = scores.group_by("step").agg(pl.col("run").n_unique()).filter(pl.col("run") == 2)["step"]
    inside = [step for step in shared.to_list() if shape.begin < step < shape.steps]
    if not inside:
        return None
    middle = (shape.begin + shape.steps) / 2
    checkpoint = min(inside, key=lambda step: (abs(step - middle), step))
    own, other = (
        scores.filter((pl.col("step") == checkpoint) & (pl.col("run") == run)).select(
            "item_id", loglik="loglik"
        )
        for run in ("perturbed", "twin")
    )
    before = exposures.filter(pl.col("position") < checkpoint * shape.global_batch_size)
    last = before.group_by("item_id").agg(last=pl.col("position").max())
    table = (
        items.filter(pl.col("dose") > 0)
        .select("item_id", group=pl.format("{} {}", "family", "dose"))
        .join(own, on="item_id")
        .join(other, on="item_id", suffix="_twin")
        .join(last, on="item_id", how="left")
        .with_columns(pl.col("last").fill_null(-1), gain=pl.col("loglik") - pl.col("loglik_twin"))
    )
    varied = table.filter(
        (pl.col("last").n_unique().over("group") > 1) & (pl.col("gain").n_unique().over("group") > 1)
    )
    if len(varied) < varied["group"].n_unique() + 4:
        return None
    order_test = order_test_within_epochs(varied["last"], varied["gain"], varied["group"])
    return {
        "checkpoint": checkpoint,
        "rho": order_test.rho,
        "low": order_test.low,
        "high": order_test.high,
        "p": order_test.p,
        "items": len(varied),
    }


def announce(result: dict[str, Any]) -> None:
    """Print verdict, checks and failures."""
    for check in result["checks"]:
        say(f"  {'ok  ' if check['passed'] else 'FAIL'} {check['name']} ({check['detail']})")
    for line in result["failures"]:
        say(f"  {line}")
    if order := result.get("evidence"):
        say(
            f"  evidence of the weights at step {order['checkpoint']}: gains over the twin follow the ledger's order "
            f"with rho = {order['rho']:.2f} ({order['low']:.2f} to {order['high']:.2f}), p = {order['p']:.2g}, "
            f"{order['items']} items"
        )
    say(f"audit: {result['verdict']}")
