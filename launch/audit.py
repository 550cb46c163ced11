"""Prove that what was consumed is what was planned: ``python launch/audit.py +experiment=quickstart``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data import artifact
from data import prepare as corpus
from data.errors import UserError
from insertion import audit as audits
from insertion import ledger
from insertion import plan as plans
from launch.config import INTEGRITY, Experiment, program, say
from launch.plan import open_order

KIND = "audit"
VERSION = 1


def _ledger(directory: Path, steps: int) -> ledger.Ledger:
    """The ledger that the last checkpoint of a finished run names."""
    from pretrain import checkpoint

    saved = checkpoint.finished(directory / "checkpoints")
    if not saved or saved[-1] < steps:
        raise UserError(
            f"run {directory} is at step {saved[-1] if saved else 0} of {steps}; train it to the end before the audit"
        )
    head = checkpoint.read(directory / "checkpoints", saved[-1]).inputs["ledger"]
    return ledger.read(directory / "ledger", head=head)


def audit(experiment: Experiment) -> dict[str, Any]:
    """Audit the pair and write ``audit/audit.json``.

    Returns:
        ``verdict``, ``checks`` and ``failures``.
    """
    place = experiment.corpus_directory
    manifest = artifact.read(place, kind=corpus.KIND, schema_version=corpus.SCHEMA_VERSION)
    plan = plans.read(experiment.directory / "plan")
    steps = experiment.train.steps
    perturbed = _ledger(experiment.directory / "perturbed", steps)
    twin = None
    if (experiment.directory / "twin").exists():
        twin = _ledger(experiment.directory / "twin", steps)
    unchanged = audits.Audit()
    try:
        artifact.verify(place, manifest)
        unchanged.add("the corpus is unchanged since planning", [], f"digest {manifest.digest[:12]}")
    except UserError as error:
        unchanged.add(
            "the corpus is unchanged since planning", [str(error)], f"digest {manifest.digest[:12]}"
        )
    if manifest.digest != plan.manifest.inputs["corpus"]:
        raise UserError(f"{place} is not the corpus that {experiment.directory / 'plan'} was made for")
    result = audits.audit(plan, perturbed, twin, open_order(experiment), unchanged)
    with artifact.writing(
        experiment.directory / "audit",
        kind=KIND,
        schema_version=VERSION,
        config={},
        inputs={
            "plan": plan.digest,
            "perturbed": perturbed.head,
            "twin": twin.head if twin else "",
            "corpus": manifest.digest,
        },
    ) as draft:
        artifact.write_json(draft.path / "audit.json", result)
    return result


def announce(result: dict[str, Any]) -> None:
    """Print verdict, checks and failures."""
    for check in result["checks"]:
        say(f"  {'ok  ' if check['passed'] else 'FAIL'} {check['name']} ({check['detail']})")
    for line in result["failures"]:
        say(f"  {line}")
    say(f"audit: {result['verdict']}")


@program
def main(experiment: Experiment) -> int:
    """Audit; status 3 if it fails."""
    result = audit(experiment)
    announce(result)
    return 0 if result["verdict"] == "PASS" else INTEGRITY


if __name__ == "__main__":
    main()
