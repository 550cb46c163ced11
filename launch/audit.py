"""Prove that what was consumed is what was planned: ``python launch/audit.py +experiment=quickstart``.

For a run that starts from another's checkpoint (``train.start_from``) the runs before it are audited, too; with
``insertion.adaptive`` every segment, and that the stored scores lead to the decisions.
"""

from __future__ import annotations

from palimpsest.launch import dry_run, pair_audit
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.process import INTEGRITY
from palimpsest.launch.program import program


def work(experiment: Experiment) -> int:
    """Run the audit; exit status 3 if it fails."""
    if experiment.insertion.adaptive is not None:
        from palimpsest.launch import adaptive

        result = adaptive.prove(experiment, adaptive.recorded_by(experiment))
    else:
        result = pair_audit.audit(experiment)
    pair_audit.announce(result)
    return 0 if result["verdict"] == "PASS" else INTEGRITY


main = program(work, dry_run=dry_run.of("audit"))

if __name__ == "__main__":
    main()
