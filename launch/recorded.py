"""The command line and configuration of a run, ``config.yaml`` in its directory: programs take that directory instead.

``palimpsest report runs/quickstart/run-1a2b3c4d report.metrics=[min_k_logprob]`` composes the experiment from that
file, with the settings typed on top, as long as they change nothing of what was planned, trained and named.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from palimpsest.analysis.run import open_run
from palimpsest.data.errors import UserError
from palimpsest.launch.compose import CONF, build
from palimpsest.launch.experiment import Experiment, resolved

FILE = "config.yaml"
_TAKE_A_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--info", "-i"),
    *("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp"),
)
"""Hydra's options whose value is the next argument."""


def record(experiment: Experiment) -> None:
    """Write the configuration of a run into its directory, below the command line that made it; the first one stays."""
    path = experiment.directory / FILE
    if path.exists():
        return
    program = Path(sys.argv[0].split()[-1]).stem
    head = f"# {shlex.join(['palimpsest', program, *sys.argv[1:]])}\n# in {Path.cwd()}\n"
    draft = path.with_name(f".{FILE}.tmp")
    draft.write_text(head + OmegaConf.to_yaml(OmegaConf.create(resolved(experiment))), encoding="utf-8")
    draft.rename(path)


def command(directory: Path) -> str | None:
    """The command line that created a run; None if it was not recorded."""
    path = directory / FILE
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") if path.is_file() else None


def split(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The run's directory among a program's arguments (None without one), and the other arguments.

    Raises:
        UserError: if there are several, there is no such run, or an experiment is named as well.
    """
    places = [
        text
        for before, text in zip(["", *arguments], arguments, strict=False)
        if "=" not in text and not text.startswith(("-", "+", "~")) and before not in _TAKE_A_VALUE
    ]
    if not places:
        return None, list(arguments)
    if len(places) > 1:
        raise UserError(f"{places[1]}: one run at a time; {places[0]} was given before")
    try:
        directory = open_run(places[0]).directory
    except UserError as error:
        if Path(places[0]).exists() or "/" in places[0]:
            raise
        raise UserError(f"{error}; a setting is typed {places[0]}=VALUE") from None
    if chosen := [text for text in arguments if text.startswith(("+experiment=", "+scale="))]:
        raise UserError(f"{chosen[0]}: the run {directory} has an experiment of its own; give one of the two")
    return directory, [text for text in arguments if text != places[0]]


def load(directory: Path, overrides: Sequence[str]) -> Experiment:
    """The experiment of a run.

    Args:
        directory: directory of the run.
        overrides: settings that replace the run's own.

    Raises:
        UserError: if the run has no stored configuration, or an override would identify another run.
    """
    if not (directory / FILE).is_file():
        raise UserError(
            f"{directory} has no {FILE} (made before runs had one); give the settings that it was made with instead"
        )
    experiment = build(_composed(directory, overrides))
    reseeded = any(text.startswith("seed=") for text in overrides)  # which nothing below depends on any more
    if _same(experiment.directory, directory) and not reseeded:
        return experiment
    own = build(_composed(directory, []))
    if _same(own.directory, directory):
        raise UserError(
            f"{' '.join(overrides)} would make another run of {directory}; settings that change what was planned, "
            "trained or named go after +experiment=NAME"
        )
    raise UserError(
        f"{directory} is {own.experiment}/{own.directory.name} by its {FILE} and the text that is there "
        f"now: it was renamed, or its corpus changed; give the experiment's settings instead"
    )


def _composed(directory: Path, overrides: Sequence[str]) -> DictConfig:
    typed = [one for text in overrides if not text.startswith("-") for one in _plain(text)]
    config = _composed_in(directory.absolute(), [])
    if lacking := {field.name for field in fields(Experiment)} - {str(key) for key in config}:
        # Settings that are younger than the run: none of them can have changed it.
        defaults = _composed_in(CONF, ["+experiment=quickstart"])
        OmegaConf.set_struct(config, False)
        config.update({name: defaults[name] for name in lacking})
    with TemporaryDirectory() as complete:
        OmegaConf.save(config, Path(complete) / FILE)
        config = _composed_in(Path(complete), typed)
    if not any(text.startswith("runs=") for text in overrides):
        config.runs = str(directory.parent.parent)
    return config


def _composed_in(directory: Path, overrides: list[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(directory), version_base="1.3"):
        return compose("config", overrides)


def _plain(override: str) -> list[str]:
    """An override without groups, which a run's configuration does not have: ``posttrain=npo`` as the settings of
    ``conf/posttrain/npo.yaml``.
    """
    group, _, option = override.partition("=")
    path = CONF / group / f"{option}.yaml"
    if not path.is_file():
        return [override]
    settings = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(settings, dict)
    return [f"{group}.{key!s}={json.dumps(value)}" for key, value in settings.items() if key != "defaults"]


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
