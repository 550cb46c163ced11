"""Explanations of a finished plan: ``palimpsest plan show``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from palimpsest.data import prepare as corpus
from palimpsest.data.errors import UserError
from palimpsest.insertion import explain
from palimpsest.insertion import plan as plans
from palimpsest.insertion.ledger import Ledger
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.inputs import ledger_of, open_order
from palimpsest.launch.process import say

KEYS = ("item", "step", "checkpoint", "ledger")
"""Settings of ``show``."""


def show(experiment: Experiment, asked: Mapping[str, str]) -> None:
    """Explain the finished plan: a summary, ``item=ID`` or ``step=S``; with ``checkpoint=S``, up to that checkpoint.

    With ``ledger=true``, the perturbed run's ledger of the item or step is shown as well, up to its last checkpoint.

    Raises:
        UserError: if there is no such plan, item, step, checkpoint or ledger.
    """
    plan = plans.read(experiment.directory / "plan")
    one = asked.keys() & {"item", "step"}
    if asked.get("ledger", "true") != "true" or ("ledger" in asked and not one):
        raise UserError(f"ledger={asked['ledger']}: write item=ID ledger=true, or step=S ledger=true")
    if not one:
        lines = list(explain.summary(plan))
    else:
        consumed = _consumed(experiment.directory / "perturbed", plan) if "ledger" in asked else None
        if consumed is not None and consumed.skipped:
            steps = ", ".join(map(str, consumed.skipped))
            say(f"skipped, so that nothing was learnt from them: steps {steps}")
        lines = (_item if "item" in asked else _step)(experiment, plan, asked, consumed)
    for line in lines:
        say(line)


def _item(
    experiment: Experiment, plan: plans.Plan, asked: Mapping[str, str], consumed: Ledger | None
) -> list[str]:
    """The exposures of an item."""
    until = _number(asked, "checkpoint") if "checkpoint" in asked else None
    if consumed is not None:
        plan = explain.consumed(plan, consumed)
        until = consumed.steps if until is None else until
    order, tokenizer = open_order(experiment), corpus.load_tokenizer(experiment.corpus_directory)
    return list(explain.item(plan, asked["item"], order, tokenizer, until=until, earlier=plans.earlier(plan)))


def _step(
    experiment: Experiment, plan: plans.Plan, asked: Mapping[str, str], consumed: Ledger | None
) -> list[str]:
    """The exposures of a step."""
    step, order = _number(asked, "step"), open_order(experiment)
    if consumed is not None:
        say(explain.same(plan, consumed, step, order))
    places = [directory for _, directory in experiment.corpora.values()]
    return list(explain.step(plan, step, order, corpus.load_tokenizer(places[0]), places))


def _consumed(run: Path, plan: plans.Plan) -> Ledger:
    """The ledger of the perturbed run.

    Raises:
        UserError: if there is no ledger, or it belongs to another plan.
    """
    ledger, _ = ledger_of(run, 0)
    if ledger.plan != plan.digest:
        raise UserError(f"the ledger of {run} is of another plan; run launch/audit.py")
    return ledger


def _number(asked: Mapping[str, str], key: str) -> int:
    if not asked[key].isdigit():
        raise UserError(f"{key}={asked[key]} must be a step number")
    return int(asked[key])
