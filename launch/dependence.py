"""Test of whether experiments that share a run influence each other.

    python launch/dependence.py +experiment=quickstart insertion=shared

Trains one run with all of ``insertion.experiments`` and one run with each of them alone, with the same items and
places, and compares the scores at the last checkpoint. With ``train.start_from`` all runs branch from that checkpoint.
The interaction of an experiment with the others is the score in the shared run minus the score alone, averaged over its
inserted items, minus the same for its controls. Without interaction it is 0.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from palimpsest.analysis.metrics import Parameters, compute
from palimpsest.analysis.scoring import scores as stored
from palimpsest.analysis.statistics import difference_to_twin, gain_over_control
from palimpsest.data import artifact
from palimpsest.data.errors import UserError
from palimpsest.insertion import plan as plans
from palimpsest.launch import pair_audit
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.plan import plan
from palimpsest.launch.prepare import prepare
from palimpsest.launch.process import INTEGRITY, say
from palimpsest.launch.program import program
from palimpsest.launch.run import train
from palimpsest.launch.score import score

KIND = "dependence"
VERSION = 1
METRIC = "loglik_per_byte"


def alone(experiment: Experiment, name: str) -> Experiment:
    """The same run with one of its experiments only."""
    one = {name: experiment.insertion.experiments[name]}
    return replace(experiment, insertion=replace(experiment.insertion, experiments=one))


def dependence(experiment: Experiment) -> dict[str, Any]:
    """Train, audit and score missing runs, compare them, and write ``dependence/dependence.json``.

    Returns:
        ``metric``; ``verdict``: PASS if all audits pass, else FAIL; and ``interactions``, a row for each experiment and
        dose: experiment, family (always ``all``), dose, estimate, low, high (nats/byte; 95 % interval), items and
        controls. The estimate is the score in the shared run minus that in the run with this experiment alone, mean at
        the dose minus mean at dose 0.

    Raises:
        UserError: if there are not at least two experiments.
    """
    names = list(experiment.insertion.experiments)
    if len(names) < 2:
        raise UserError(
            f"insertion.experiments has {len(names)} entries; two or more are needed (insertion=shared is an example)"
        )
    prepare(experiment)
    verdicts = []
    runs: dict[str, tuple[Experiment, list[str]]] = {"all of them": (experiment, [])}
    for name in names:
        others = [f"~insertion.experiments.{other}" for other in names if other != name]
        runs[f"{name} alone"] = (alone(experiment, name), others)
    digests = {}
    for title, (one, left_out) in runs.items():
        say(f"{title}: {one.directory}")
        plan(one)
        train(one, "perturbed", left_out)
        result = pair_audit.audit(one)
        pair_audit.announce(result)
        verdicts.append(result["verdict"])
        score(one)
        digests[title] = plans.read(one.directory / "plan").digest
    interactions = [row for name in names for row in _interactions(experiment, name)]
    verdict = "PASS" if set(verdicts) == {"PASS"} else "FAIL"
    summary = {"metric": METRIC, "verdict": verdict, "interactions": interactions}
    with artifact.writing(
        experiment.directory / "dependence", kind=KIND, schema_version=VERSION, config={}, inputs=digests
    ) as draft:
        artifact.write_json(draft.path / "dependence.json", summary)
    return summary


def _interactions(experiment: Experiment, name: str) -> list[dict[str, Any]]:
    """Interaction of an experiment with the others that share its run, at each dose."""
    single = alone(experiment, name)
    alone_plan = plans.read(single.directory / "plan")
    # The statistics subtract the run that is called the twin.
    scores = pl.concat(
        [
            _last(place, alone_plan, run)
            for place, run in ((experiment.directory, "perturbed"), (single.directory, "twin"))
        ]
    )
    rows = compute(alone_plan.items, alone_plan.probes, scores, [METRIC], Parameters())
    pairs = gain_over_control(difference_to_twin(rows))
    return [
        {
            "experiment": name,
            "family": row["family"],
            "dose": row["dose"],
            **{key: row[key] for key in ("estimate", "low", "high")},
            "items": row["n"],
            "controls": row["n_control"],
        }
        for row in pairs.filter(pl.col("family") == "all").sort("dose").iter_rows(named=True)
    ]


def _last(directory: Path, alone_plan: plans.Plan, run: str) -> pl.DataFrame:
    """Scores of an experiment's probes at a run's last checkpoint."""
    shared = plans.read(directory / "plan")
    scores, _ = stored.read(directory / "scores", ("perturbed",), plan=shared.digest)
    mine = alone_plan.probes.filter(pl.col("item_id").is_not_null())["probe_id"]
    last = scores.filter((pl.col("step") == pl.col("step").max()) & pl.col("probe_id").is_in(mine.implode()))
    return last.with_columns(run=pl.lit(run))


@program
def main(experiment: Experiment) -> int:
    """Print the interactions; status 3 if an audit failed."""
    summary = dependence(experiment)
    say("what the company of the others adds, inserted items less controls, nats a byte (95 % interval)")
    for row in summary["interactions"]:
        say(
            f"  {row['experiment']}, dose {row['dose']}: {row['estimate']:+.4f} ({row['low']:+.4f} to "
            f"{row['high']:+.4f}), {row['items']} items, {row['controls']} controls"
        )
    say(f"{experiment.directory / 'dependence' / 'dependence.json'}")
    return 0 if summary["verdict"] == "PASS" else INTEGRITY


if __name__ == "__main__":
    main()
