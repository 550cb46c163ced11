"""Continuations by checkpoints: ``python launch/generate.py +experiment=quickstart generate.samples=8``.

Each item's first tokens, and the prompts of questions, are continued greedily and by sampling; the report is then
written again. ``shard=k/n`` does one share of the work, for an array of jobs, and no report.
"""

from __future__ import annotations

from collections.abc import Iterator

from palimpsest.analysis.generation.continuations import KIND
from palimpsest.data import artifact
from palimpsest.data import prepare as corpus
from palimpsest.insertion import plan as plans
from palimpsest.launch import exported
from palimpsest.launch.experiment import PAIR, Experiment
from palimpsest.launch.program import program, share_of


def generate(experiment: Experiment) -> None:
    """Continue the prompts at the checkpoints of the perturbed run and of its twin; stored continuations are kept."""
    from palimpsest.analysis.generation import store
    from palimpsest.analysis.scoring import beginnings

    plan = plans.read(experiment.directory / "plan")
    tokenizer = corpus.load_tokenizer(experiment.corpus_directory)
    facts = artifact.read(
        experiment.corpus_directory, kind=corpus.KIND, schema_version=corpus.SCHEMA_VERSION
    ).facts
    share = (0, 1) if experiment.shard is None else share_of(experiment.shard)
    begun = beginnings.of_run(tokenizer).reading(experiment.score.bos, experiment.score.long_texts).bos
    cut = store.parts(plan.probes, experiment.generate, begun=begun)
    for which in PAIR:
        checkpoints = exported.checkpoints_of(experiment, which, tokenizer.eod)
        done = store.generate_all(
            experiment.directory / KIND / which,
            plan.probes,
            checkpoints,
            experiment.generate,
            begun=begun,
            items_digest=plan.digest,
            beginning=tokenizer.eod,
            ends=[tokenizer.eod],
            vocab_size=facts["vocab_size"],
            decode_text=tokenizer.decode,
            share=share,
        )
        texts, steps = f"{sum(map(len, cut))} prompts", [one.step for one in checkpoints]
        exported.announce(experiment, which, steps, texts, len(cut), done, "written")


def lines(experiment: Experiment) -> Iterator[str]:
    """Lines of ``dry_run=true``: the continuations that would be made."""
    settings = experiment.generate
    yield from exported.preview(experiment, KIND, "generate", "continued")
    ways = f"1 greedy continuation and {settings.samples} drawn"
    contexts = " and ".join(map(str, settings.prefix_tokens)) or "no"
    asked = ", and of each cloze prompt" if settings.questions else ""
    yield f"  {ways} after {contexts} tokens of each item{asked}, of {settings.max_tokens} tokens at most"


def work(experiment: Experiment) -> int:
    """Generate, then report; status 3 if the audit failed."""
    generate(experiment)
    return exported.reported(experiment)


main = program(work, dry_run=lines)

if __name__ == "__main__":
    main()
