"""Membership attacks that need passes of their own: ``python launch/attack.py +experiment=quickstart``.

``attack.names`` names them: ReCaLL and Con-ReCaLL read each text behind others, the neighbourhood attack reads altered
copies of it, the gradient norm goes backwards, DC-PDD counts the corpus's tokens. The report is then written again.
``shard=k/n`` does one share of the work, for an array of jobs, and no report.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from palimpsest.analysis.attacks import values
from palimpsest.data import artifact, tokens
from palimpsest.data import prepare as corpus
from palimpsest.insertion import plan as plans
from palimpsest.launch import exported
from palimpsest.launch.experiment import PAIR, Experiment
from palimpsest.launch.program import program, share_of

COUNTED = 20_000_000
"""Tokens of the corpus, from its beginning, whose frequencies DC-PDD compares with."""


def frequencies(experiment: Experiment, vocab_size: int) -> NDArray[np.float64]:
    """Relative frequency of each token id in the corpus, (V,); one is added to each count, so that all are above 0."""
    ids = tokens.read_tokens(experiment.corpus_directory / corpus.TRAIN)[:COUNTED]
    counts = np.bincount(ids, minlength=vocab_size)[:vocab_size] + 1.0
    return np.asarray(counts / counts.sum())


def attack(experiment: Experiment) -> None:
    """Attack the items at the checkpoints of the perturbed run and of its twin; stored values are kept."""
    from palimpsest.analysis.attacks import store

    plan = plans.read(experiment.directory / "plan")
    facts = artifact.read(
        experiment.corpus_directory, kind=corpus.KIND, schema_version=corpus.SCHEMA_VERSION
    ).facts
    share = (0, 1) if experiment.shard is None else share_of(experiment.shard)
    every = values.texts(plan.items, plan.probes, experiment.attack)
    counted = cache(partial(frequencies, experiment, facts["vocab_size"]))
    for which in PAIR:
        checkpoints = exported.checkpoints_of(experiment, which, facts["eod"])
        done = store.attack_all(
            experiment.directory / values.KIND / which,
            every,
            checkpoints,
            experiment.attack,
            items_digest=plan.digest,
            beginning=facts["eod"],
            vocab_size=facts["vocab_size"],
            frequencies=counted,
            share=share,
        )
        parts, steps = len(store.parts(every)), [one.step for one in checkpoints]
        exported.announce(experiment, which, steps, f"{len(every)} texts", parts, done, "done")


def lines(experiment: Experiment) -> Iterator[str]:
    """Lines of ``dry_run=true``: the attacks that would be made."""
    yield from exported.preview(experiment, values.KIND, "attack", "attacked")
    yield f"  {', '.join(experiment.attack.names)}, on the whole text of each item"


def work(experiment: Experiment) -> int:
    """Attack, then report; status 3 if the audit failed."""
    attack(experiment)
    return exported.reported(experiment)


main = program(work, dry_run=lines)

if __name__ == "__main__":
    main()
