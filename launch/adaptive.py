"""Adaptive doses, decided from the scores so far: ``python launch/adaptive.py +experiment=quickstart
insertion.adaptive=...``.

Training is divided into segments, each a run that starts from the checkpoint of the one before. For each segment, the
program scores that checkpoint, lets the policy of ``insertion.adaptive`` decide, plans the exposures, trains and
audits. The same command resumes. At the end every decision is replayed from the stored scores, and every plan is
recomputed and compared.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from palimpsest.analysis.metrics import Parameters, compute
from palimpsest.analysis.scoring import scores as stored
from palimpsest.analysis.statistics import decided_ec50, total_doses
from palimpsest.data import artifact
from palimpsest.data.artifact import json_digest
from palimpsest.data.errors import UserError
from palimpsest.insertion import plan as plans
from palimpsest.insertion.audit import Audit
from palimpsest.insertion.placement.adaptive import POLICIES, AdaptiveConfig, State, arms_of_segment
from palimpsest.launch import pair_audit
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.plan import make, plan
from palimpsest.launch.prepare import prepare
from palimpsest.launch.process import INTEGRITY, say
from palimpsest.launch.program import program
from palimpsest.launch.score import score
from palimpsest.launch.train import train

KIND = "adaptive"
VERSION = 2
METRIC = "loglik_per_byte"


def settings_of(experiment: Experiment) -> AdaptiveConfig:
    """Settings of the policy.

    Raises:
        UserError: if there are none, or they are inconsistent with the run.
    """
    settings = experiment.insertion.adaptive
    if settings is None:
        raise UserError(
            "insertion.adaptive is not set; give it a policy, such as "
            "'insertion.adaptive={policy: insert_until, at: [50,100], threshold: 0.5}'"
        )
    if settings.at[-1] >= experiment.train.end or settings.at[0] <= experiment.train.begin:
        raise UserError(
            f"insertion.adaptive.at={list(settings.at)} must lie inside the run, steps {experiment.train.begin} to "
            f"{experiment.train.end}"
        )
    if experiment.parallel.min_world_size * int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "launch/adaptive.py trains in one process; set parallel.tensor=1 and parallel.pipeline=1, without torchrun"
        )
    return settings


def segment(experiment: Experiment, number: int, counts: Mapping[str, int], start: str | None) -> Experiment:
    """A segment as a separate experiment.

    Args:
        experiment: with all its segments.
        number: number of the segment.
        counts: item -> exposures in the segment; all others get none.
        start: checkpoint from which the segment starts.
    """
    settings = settings_of(experiment)
    ends = [*settings.at, experiment.train.end]
    assigned = dict(plans.read(experiment.directory / "plan").items.select("item_id", "dose").iter_rows())
    named = arms_of_segment(assigned, counts)
    return replace(
        experiment,
        name=f"{experiment.name}.{number}",
        insertion=replace(experiment.insertion, adaptive=None, doses=(), named_arms=named),
        train=replace(experiment.train, start_from=start, stop_at=ends[number]),
    )


def scores_at_end(directory: Path, end: int) -> tuple[dict[str, float], dict[str, str]]:
    """Gain of each item over the never-inserted ones at a segment's last checkpoint, and digests of the scores."""
    segment_plan = plans.read(directory / "plan")
    scores, digests = stored.read(directory / "scores", ("perturbed", "twin"), plan=segment_plan.digest)
    last = scores.filter((pl.col("step") == end) & (pl.col("run") == "perturbed"))
    rows = compute(segment_plan.items, segment_plan.probes, last, [METRIC], Parameters())
    values = rows.filter(pl.col("value").is_not_null() & pl.col("item_id").is_not_null())
    means = values.group_by("item_id").agg(pl.col("value").mean()).join(
        segment_plan.items.select("item_id", "arm"), on="item_id"
    )  # fmt: skip
    never = pl.col("arm") == "never inserted"
    base = float(means.filter(never)["value"].to_numpy().mean())
    rest = means.filter(~never).sort("item_id")
    used = {name: digest for name, digest in digests.items() if f"step_{end:08d}" in name}
    return {item: value - base for item, value in rest.select("item_id", "value").iter_rows()}, used


def decisions(experiment: Experiment, carry_out: bool) -> list[dict[str, Any]]:
    """Decisions of an adaptive experiment in their order, each with the digest of the one before.

    A decision gives each item its exposures in the next segment, a stretch of the training.

    Args:
        experiment: with all its segments.
        carry_out: train and score segments that are missing; if false, only decide from stored scores.
    """
    settings = settings_of(experiment)
    items = plans.read(experiment.directory / "plan").items
    scores = dict.fromkeys(items.filter(pl.col("dose") > 0)["item_id"].to_list(), 0.0)
    start, previous = experiment.train.start_from, ""
    state: State = {}
    used: dict[str, str] = {}
    records: list[dict[str, Any]] = []
    for number, end in enumerate([*settings.at, experiment.train.end]):
        counts, state = POLICIES[settings.policy](scores, state, experiment.insertion.seed, settings)
        one = segment(experiment, number, counts, start)
        if carry_out:
            say(f"segment {number}, to step {end}: {len(counts)} items, {sum(counts.values())} exposures")
            plan(one)
            train(one, "perturbed")
            score(one)
        record = {
            "end": end,
            "seen": scores,
            "scores": used,
            "exposures": counts,
            "state": state,
            "directory": str(one.directory),
            "plan": plans.read(one.directory / "plan").digest,
            "previous": previous,
        }
        previous = json_digest(record)
        records.append({**record, "digest": previous})
        scores, used = scores_at_end(one.directory, end)
        start = str(one.directory / "perturbed" / "checkpoints" / f"step_{end:08d}")
    records[-1]["after"] = scores
    return records


def replay(experiment: Experiment, recorded: list[dict[str, Any]]) -> list[str]:
    """Differences between the recorded decisions and those recomputed from the stored scores, and between each plan and
    the one recomputed from its decision.
    """
    wrong = []
    again = json.loads(json.dumps(decisions(experiment, carry_out=False)))
    recorded = json.loads(json.dumps(recorded))
    start = experiment.train.start_from
    for number, (was, now) in enumerate(zip(recorded, again, strict=True)):
        if was != now:
            wrong.append(
                f"segment {number}: the stored scores lead to another decision than the one recorded"
            )
        one = segment(experiment, number, now["exposures"], start)
        with tempfile.TemporaryDirectory() as place:
            plan_again = make(one, Path(place) / "plan")
        if plan_again.digest != plans.read(Path(was["directory"]) / "plan").digest:
            wrong.append(f"segment {number}: the decision leads to another plan than the one carried out")
        start = str(one.directory / "perturbed" / "checkpoints" / f"step_{now['end']:08d}")
    return wrong


def prove(experiment: Experiment, recorded: list[dict[str, Any]]) -> dict[str, Any]:
    """Audit every segment (the training between two decisions), and check that the stored scores lead to the decisions.

    Args:
        experiment: the adaptive experiment.
        recorded: its decisions on doses, in order.

    Returns:
        The result; see ``insertion.audit.Audit.result``.
    """
    report = Audit()
    start, previous, broken = experiment.train.start_from, "", []
    for number, record in enumerate(recorded):
        one = segment(experiment, number, record["exposures"], start)
        result = pair_audit.audit(one)
        detail = f"{sum(record['exposures'].values()):,} exposures, {len(result['checks'])} checks"
        report.add(f"segment {number}", result["failures"], f"to step {record['end']}, {detail}")
        start = str(one.directory / "perturbed" / "checkpoints" / f"step_{record['end']:08d}")
        content = {key: value for key, value in record.items() if key not in ("digest", "after")}
        if record["previous"] != previous or json_digest(content) != record["digest"]:
            broken.append(f"decision {number} does not continue the one before it")
        previous = record["digest"]
    report.add("each decision names the one before it", broken, f"{len(recorded)} decisions")
    report.add(
        "the stored scores lead to these decisions, and they to these plans",
        replay(experiment, recorded),
        f"policy {settings_of(experiment).policy}, replayed",
    )
    return report.result()


def recorded_by(experiment: Experiment) -> list[dict[str, Any]]:
    """The decisions that an adaptive run has recorded.

    Raises:
        UserError: if it is not finished, or the record was changed.
    """
    place = experiment.directory / "adaptive"
    if not (place / artifact.MANIFEST).is_file():
        raise UserError(f"{place} is missing; run launch/adaptive.py before the audit")
    artifact.verify(place, artifact.read(place, kind=KIND, schema_version=VERSION))
    records: list[dict[str, Any]] = json.loads((place / "decisions.json").read_text(encoding="utf-8"))[
        "decisions"
    ]
    return records


def verdict(experiment: Experiment) -> str | None:
    """Verdict of a finished adaptive run, ``PASS`` or ``FAIL``; None if there is none."""
    place = experiment.directory / "adaptive"
    if not (place / artifact.MANIFEST).is_file():
        return None
    artifact.read(place, kind=KIND, schema_version=VERSION)
    return str(json.loads((place / "decisions.json").read_text(encoding="utf-8"))["verdict"])


def adaptive(experiment: Experiment) -> dict[str, Any]:
    """Train and audit all segments, replay the decisions, and write ``adaptive/decisions.json``.

    Returns:
        ``verdict``, ``failures``, ``decisions``.
    """
    settings = settings_of(experiment)
    prepare(experiment)
    plan(experiment)
    recorded = decisions(experiment, carry_out=True)
    failures: list[str] = []
    place = experiment.directory / "adaptive"
    if (place / artifact.MANIFEST).is_file():
        before = recorded_by(experiment)
        if before != json.loads(json.dumps(recorded)):
            failures.append("the stored scores lead to other decisions than the ones recorded before")
    proof = prove(experiment, recorded)
    failures += proof["failures"]
    for check in proof["checks"]:
        say(f"{check['name']}: {'PASS' if check['passed'] else 'FAIL'}")
    summary = {
        "verdict": "FAIL" if failures else "PASS",
        "failures": failures,
        "policy": settings.policy,
        "threshold": settings.threshold,
        "decisions": recorded,
    }
    with artifact.writing(
        place,
        kind=KIND,
        schema_version=VERSION,
        config={"metric": METRIC},
        inputs={f"segment {n}": record["plan"] for n, record in enumerate(recorded)},
    ) as draft:
        artifact.write_json(draft.path / "decisions.json", summary)
    return summary


@program
def main(experiment: Experiment) -> int:
    """Run all segments; exit status 3 if an audit or the replay fails."""
    settings = settings_of(experiment)
    summary = adaptive(experiment)
    recorded = summary["decisions"]
    for record, total in zip(recorded, total_doses(recorded)[1:], strict=True):
        say(
            f"  to step {record['end']}: {sum(record['exposures'].values()):,} exposures of "
            f"{len(record['exposures']):,} items; {sum(total.values()):,} so far"
        )
    remembered = sum(score >= settings.threshold for score in recorded[-1]["after"].values())
    say(f"  remembered at the end: {remembered} of {len(recorded[-1]['after'])}")
    ec50 = decided_ec50(recorded, settings.policy, settings.threshold)
    if ec50 is not None:
        say(f"  half of the items are remembered after {ec50.text} exposures")
    for line in summary["failures"]:
        say(f"  {line}")
    say(f"adaptive: {summary['verdict']}; {experiment.directory / 'adaptive' / 'decisions.json'}")
    return 0 if summary["verdict"] == "PASS" else INTEGRITY


if __name__ == "__main__":
    main()
