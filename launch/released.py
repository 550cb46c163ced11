"""Score and report models that others have trained: ``python launch/released.py +experiment=released``.

``models.perturbed=NAME items=FILE`` scores a causal model of ``transformers`` on items whose doses its authors have
published; ``models.standard=NAME`` is its twin. ``generated=true`` also lets it continue items and prompts.
``shard=k/n`` does one share of the work, for a job array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from palimpsest.analysis import Run
from palimpsest.analysis.generation import continuations
from palimpsest.analysis.metrics import Parameters
from palimpsest.analysis.report import build as build_report
from palimpsest.analysis.report.inputs import KIND, VERSION
from palimpsest.analysis.scoring import hub, scores
from palimpsest.data import artifact
from palimpsest.data.artifact import json_digest
from palimpsest.data.errors import UserError
from palimpsest.insertion import declared
from palimpsest.insertion import plan as plans
from palimpsest.insertion.families import files
from palimpsest.launch.compose import RELEASED
from palimpsest.launch.experiment import resolved
from palimpsest.launch.process import say
from palimpsest.launch.program import program, share_of
from palimpsest.launch.released_settings import ModelPair, ReleasedConfig, build
from palimpsest.launch.score import summary
from palimpsest.pretrain.saved import path_of

if TYPE_CHECKING:
    import torch

    from palimpsest.analysis.scoring.hub import Released
    from palimpsest.analysis.scoring.models import Model


def _runs(pair: ModelPair) -> dict[str, str]:
    """Name of a run -> model."""
    return {"perturbed": pair.perturbed} | ({"twin": pair.standard} if pair.standard is not None else {})


def _located(config: ReleasedConfig, pair: ModelPair) -> dict[str, dict[int, Released]]:
    """Name of a run -> step -> model.

    Raises:
        UserError: if two models have different tokenizers.
    """
    revisions = hub.steps(config.revisions, pair.final_step)
    opened = {
        which: {step: hub.locate(model, revision) for step, revision in revisions.items()}
        for which, model in _runs(pair).items()
    }
    first, *others = (one for models in opened.values() for one in models.values())
    for one in others:
        if (one.words.digest, one.beginning) != (first.words.digest, first.beginning):
            raise UserError(
                f"{one.name} at {one.revision or 'its default revision'} has another tokenizer.json or first token "
                f"than {first.name}; models that are compared must read the same tokens"
            )
    return opened


def plan(config: ReleasedConfig, name: str, words: Released) -> plans.Plan:
    """The items with their declared doses, as a plan; made again only if they or the tokenizer changed."""
    place = config.directory(name) / "plan"
    settings = {
        "released": {"models": _runs(config.pairs[name]), **config.reading()},
        "run": {"steps": 0, "global_batch_size": 1, "sequence_length": 0, "begin": 0},
    }
    inputs = {
        **declared.digests(config.sources),
        "tokenizer": words.words.digest,
        "first": str(words.beginning.id),
    }
    with artifact.held(place):
        done, _ = artifact.reuse(
            place, kind=plans.KIND, schema_version=plans.VERSION, config=settings, inputs=inputs
        )
        if done is None:
            items = declared.read(
                config.sources, config.fields, limit=config.limit, same_text=config.same_text
            )
            declared.write(items, words.words, place, config=settings, inputs=inputs, seed=config.seed)
    return plans.read(place)


def score(config: ReleasedConfig, name: str) -> plans.Plan:
    """Score a model, or a pair, at every revision; existing scores are reused."""
    from palimpsest.analysis.generation import store as generation
    from palimpsest.analysis.scoring import store

    opened = _located(config, config.pairs[name])
    items_plan = plan(config, name, next(iter(opened["perturbed"].values())))
    left_out = items_plan.manifest.facts["probes_left_out"]
    if left_out:
        say(f"{len(left_out)} questions are left out; the first: {left_out[0]}")
    share = (0, 1) if config.shard is None else share_of(config.shard)
    beginning = next(iter(opened["perturbed"].values())).beginning
    reading = beginning.reading(config.score.bos, config.score.long_texts)
    say(beginning.line(reading))
    options = {key: value for key in ("dtype", "device_map") if (value := getattr(config, key)) is not None}
    for which, models in opened.items():
        load = partial(_load, device=_device(config), options=options)
        checkpoints = [
            store.Checkpoint(step, json_digest([one.digest, options]), partial(load, one), one.revision or "")
            for step, one in models.items()
        ]
        first = next(iter(models.values()))
        done = store.score_all(
            config.directory(name) / "scores" / which,
            items_plan.probes,
            checkpoints,
            items_digest=items_plan.digest,
            eod=beginning.id,
            vocab_size=first.vocabulary,
            share=share,
            reading=reading,
        )
        parts = len(store.parts(items_plan.probes))
        say(summary(which, len(items_plan.probes), len(checkpoints), done, parts, config.shard))
        if config.generated:
            written = generation.generate_all(
                config.directory(name) / continuations.KIND / which,
                items_plan.probes,
                [replace(one, load=partial(_inner, one.load)) for one in checkpoints],
                config.generate,
                begun=reading.bos,
                items_digest=items_plan.digest,
                beginning=beginning.id,
                ends=first.ends,
                vocab_size=first.vocabulary,
                decode_text=first.words.decode,
                share=share,
            )
            say(f"{which}: {written} parts of continuations written now")
    return items_plan


def _inner(load: Callable[[], Any]) -> Any:
    """The model of ``transformers`` inside the one that is scored."""
    return load().model


def _load(one: Released, device: torch.device, options: Mapping[str, Any]) -> Model:
    return one.load(device, options)


def _device(config: ReleasedConfig) -> torch.device:
    import torch

    kind = config.device
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: there is no GPU here; set device=cpu or auto")
    return torch.device("cuda" if kind != "cpu" and torch.cuda.is_available() else "cpu")


def _no_report(config: ReleasedConfig, name: str, items_plan: plans.Plan) -> str:
    """Reason why no report can be made yet; empty if it can be made."""
    doses = items_plan.items["dose"]
    if doses.null_count():
        return "the items declare no doses (a column dose)"
    if not (doses == 0).any() or not (doses > 0).any():
        return "it takes items of dose 0 and of a higher one"
    pair = config.pairs[name]
    wanted = [
        path_of(config.directory(name) / "scores" / which, step)
        for which in _runs(pair)
        for step in hub.steps(config.revisions, pair.final_step)
    ]
    if missing := [place for place in wanted if not _whole(place)]:
        left = f"{len(missing)} of {len(wanted)} checkpoints are not all scored"
        return f"{left}; run the other shares, or again without shard"
    return ""


def _whole(place: Path) -> bool:
    """True if all parts of a checkpoint's scores exist."""
    parts = [m for path, m in scores.parts(place.parent) if path.name.split("-")[0] == place.name]
    return bool(parts) and len(parts) == parts[0].facts["parts"]


def report(config: ReleasedConfig, name: str) -> str:
    """Build ``report.html`` and its accompanying files.

    Returns:
        The headline.
    """
    run = Run(config.directory(name))
    place = config.report.out or run.directory / "report"
    inputs = run.inputs(
        title=f"{config.experiment} {name}".strip(),
        audit=None,
        config=resolved(config),
        spans=run.tokenizer.encode_offsets,
        parameters=Parameters(prefix=config.report.prefix_tokens, suffix=config.report.suffix_tokens),
        metrics=config.report.metrics,
        contrasts=config.report.contrasts,
        seed=config.seed,
    )
    settings = {key: value for key, value in resolved(config)["report"].items() if key != "out"}
    with artifact.writing(
        place,
        kind=KIND,
        schema_version=VERSION,
        config=settings,
        inputs={"plan": run.plan.digest, **run.score_digests},
    ) as draft:
        headline: str = build_report(inputs, draft.path)["headline"]
    say(f"report: {place / 'report.html'}")
    return headline


def work(config: ReleasedConfig) -> int:
    """Score every released model on the items, and write the reports."""
    for name in config.chosen:
        say(f"{config.experiment}{f' {name}' if name else ''}, in {config.directory(name)}")
        items_plan = score(config, name)
        if reason := _no_report(config, name, items_plan):
            say(f"scores: {config.directory(name) / 'scores'}; no report: {reason}")
        else:
            say(report(config, name))
    return 0


def dry_run(config: ReleasedConfig) -> Iterator[str]:
    """Lines about artefacts that would be made or reused; nothing is loaded from the hub."""
    for name, path in config.sources.items():
        if files.has_rows(path):
            items = declared.read({name: path}, config.fields, limit=config.limit, same_text=config.same_text)
            doses = pl.Series([one.dose for one in items], dtype=pl.Int64).value_counts(sort=True)
            counts = ", ".join(f"{n} of dose {dose}" for dose, n in sorted(doses.iter_rows(), key=str))
            yield f"items {name}: {path}, {len(items)} items ({counts.replace('dose None', 'no declared dose')})"
        else:
            yield f"items {name}: {path}, a data set that is read then"
    for name, pair in config.chosen.items():
        place = config.directory(name)
        yield f"{config.experiment}{f' {name}' if name else ''}, in {place}; dry_run=true: nothing is run"
        for which, model in _runs(pair).items():
            wanted = hub.steps(config.revisions, pair.final_step)
            there = sum(_whole(path_of(place / "scores" / which, step)) for step in wanted)
            listed = ", ".join(revision or "the default one" for revision in wanted.values())
            yield f"  {which}: {model}, revisions {listed}; {there} of {len(wanted)} are scored"
        out = config.report.out or place / "report"
        yield f"  report: {'make anew' if (out / artifact.MANIFEST).is_file() else 'make'} {out}"


main = program(work, dry_run=dry_run, kind=build, conf=RELEASED)

if __name__ == "__main__":
    main()
