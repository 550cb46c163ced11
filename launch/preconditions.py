"""Files that the user must provide: all missing ones are named at once, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from palimpsest.data import artifact
from palimpsest.data.errors import UserError
from palimpsest.data.mixture import MAIN
from palimpsest.data.prepare import CorpusConfig
from palimpsest.data.sources.base import FILE_KINDS, files
from palimpsest.insertion.families import registry
from palimpsest.launch.experiment import Experiment
from palimpsest.pretrain import saved
from palimpsest.pretrain.huggingface import files as files_of_model


def missing(experiment: Experiment) -> list[str]:
    """A line for each file or directory that the settings name and that is not there.

    Nothing is read: names on the Hugging Face hub and the contents of files are checked by the stage that reads them.
    """
    lines: list[str] = []
    for name, (config, directory) in experiment.corpora.items():
        if not (directory / artifact.MANIFEST).is_file():
            lines += _of_corpus(name if name == MAIN else f"mixture.corpora.{name}", config)
    lines += _of_weights(experiment)
    for setting, value in _paths(experiment):
        if not Path(value).exists():
            lines.append(f"{setting}={value} does not exist (relative paths start at {Path.cwd()})")
    return lines


def require(experiments: Iterable[Experiment]) -> None:
    """Check the experiments of a sweep, or of one run.

    Raises:
        UserError: naming everything that is missing.
    """
    lines = dict.fromkeys(line for experiment in experiments for line in missing(experiment))
    if lines:
        raise UserError("; ".join(lines))


def _of_corpus(name: str, config: CorpusConfig) -> Iterator[str]:
    if config.source.kind in FILE_KINDS:
        for path in config.source.paths:
            try:
                files(replace(config.source, paths=(path,)))
            except UserError as error:
                yield str(error).replace("corpus.source", f"{name}.source", 1)
    tokenizer = config.tokenizer
    if name == MAIN and tokenizer.kind == "file" and not Path(tokenizer.path or "").is_file():
        yield f"{name}.tokenizer.path={tokenizer.path} does not exist (relative paths start at {Path.cwd()})"


def _of_weights(experiment: Experiment) -> Iterator[str]:
    """Check a model to start from by its small files, for a name on the hub too."""
    if experiment.model.weights and _untrained(experiment):
        try:
            files_of_model.find(experiment.model.weights, experiment.model.revision, whole=False)
        except UserError as error:
            yield str(error)


def _untrained(experiment: Experiment) -> bool:
    """True before the first checkpoint; afterwards what a run started from may be deleted."""
    return not saved.finished(experiment.directory / "perturbed" / "checkpoints")


def _paths(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """(setting, path) of everything that is read besides the corpora; for the plan only before it is made."""
    if (start := experiment.train.start_from) and _untrained(experiment):
        yield "train.start_from", start
    if (experiment.directory / "plan" / artifact.MANIFEST).is_file():
        return
    if experiment.insertion.paired_with:
        yield "insertion.paired_with", experiment.insertion.paired_with
    for name, design in experiment.insertion.designs():
        prefix = f"insertion.experiments.{name}" if name else "insertion"
        for setting, value in (
            ("placements", design.placements),
            ("likelihood_model", design.likelihood_model),
        ):
            if value and value != registry.TRAINED:
                yield f"{prefix}.{setting}", value
        for family, settings in design.families.items():
            for key, value in settings.items():
                if value and value != registry.TRAINED and (key == "path" or key.endswith("_path")):
                    yield f"{prefix}.families.{family}.{key}", str(value)
