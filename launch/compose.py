"""Conversion of Hydra's configuration to the ``Experiment``, and of Hydra's errors to one line."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from palimpsest.data.errors import UserError, nearest
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.process import say
from palimpsest.pretrain import laws
from palimpsest.pretrain.huggingface import settings as released

CONF = Path(__file__).resolve().parent.parent / "conf"
RELEASED = CONF / "released"
"""The settings of ``launch/released.py``."""
_EXAMPLE = {CONF: "quickstart", RELEASED: "released"}
_PROGRAMS = {
    CONF: "a model that is trained here: launch/run.py",
    RELEASED: "released models: launch/released.py",
}
Checked = TypeVar("Checked")


def scaled(arguments: Sequence[str]) -> list[str]:
    """Command line with ``+experiment=NAME +scale=nano`` replaced by ``+experiment=NAME_nano`` where that file exists;
    otherwise unchanged, and the scale's own settings apply.
    """
    chosen = {key: value for key, _, value in (text.partition("=") for text in arguments)}
    name, scale = chosen.get("+experiment"), chosen.get("+scale")
    if not scale or not (CONF / "experiment" / f"{name}_{scale}.yaml").is_file():
        return list(arguments)
    own = {f"+experiment={name}": [f"+experiment={name}_{scale}"], f"+scale={scale}": []}
    return [text for argument in arguments for text in own.get(argument, [argument])]


def build(config: DictConfig) -> Experiment:
    """The dataclasses of a composed configuration, after checks.

    Raises:
        UserError: for a missing, unknown or impossible value.
    """
    values = values_of(Experiment, config, CONF)
    _sort_families(values.get("insertion"))
    if all(isinstance(values.get(part), dict) for part in ("model", "optimizer", "train")):  # else said below
        for line in (*released.apply(values), *laws.apply(values)):
            say(line)
    return checked(Experiment, values)


def values_of(kind: type, config: DictConfig, conf: Path) -> dict[str, Any]:
    """Values of a composed configuration, converted to the dataclass's types as far as pydantic is not strict enough.

    Args:
        kind: the dataclass.
        config: the configuration.
        conf: its directory.

    Raises:
        UserError: for a missing or unknown value.
    """
    if OmegaConf.is_missing(config, "experiment"):
        names = _experiments(conf)
        raise UserError(
            f"no experiment was chosen: add +experiment=NAME, such as {_EXAMPLE[conf]}{nearest('', names)}"
        )
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{missing[0]} has no value; set it: {missing[0]}=...")
    values: dict[str, Any] = _convert(kind, OmegaConf.to_container(config, resolve=True), "")
    return values


def checked(kind: type[Checked], values: dict[str, Any]) -> Checked:
    """Dataclass of checked values.

    Raises:
        UserError: for an impossible value.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        # A setting that repeats another's value (generate.prefix_tokens, report.prefix_tokens) has the same error.
        first = {(one["msg"], str(one["input"])): one for one in reversed(error.errors())}
        raise UserError("; ".join(_message(one, values) for one in reversed(first.values()))) from None


def _message(error: ErrorDetails, values: dict[str, Any]) -> str:
    """One of pydantic's errors as a message that names the setting and its value."""
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        return str(cause)
    key = _setting(error["loc"], values)
    given = "" if isinstance(error["input"], dict) else f"={_typed(error['input'])}"
    return f"{key}{given}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _sort_families(insertion: Any) -> None:
    """Sort families and shared experiments by name, because their order must not change a digest."""
    if not isinstance(insertion, dict):
        return
    shared = insertion.get("experiments")
    if isinstance(shared, dict):
        insertion["experiments"] = shared = dict(sorted(shared.items()))
    for design in (insertion, *(shared.values() if isinstance(shared, dict) else ())):
        if isinstance(design, dict) and isinstance(families := design.get("families"), dict):
            design["families"] = dict(sorted(families.items()))


def _setting(location: tuple[int | str, ...], values: Any) -> str:
    """Name of the setting at a pydantic location, without the names of a union's alternatives."""
    parts = []
    for part in location:
        inside = part in values if isinstance(values, dict) else isinstance(values, list)
        if inside and (isinstance(values, dict) or isinstance(part, int)):
            values = values[part]
            parts.append(str(part))
        elif isinstance(values, dict) and part == location[-1]:  # what is missing
            parts.append(str(part))
    return ".".join(parts)


def _typed(value: object) -> str:
    """A value in the syntax of the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _convert(kind: Any, value: Any, name: str) -> Any:
    """Convert a value of OmegaConf for pydantic, with stricter checks (true is not 1) and clearer messages.

    Args:
        kind: type of the field, such as ``int | None``, a dataclass, or a ``Mapping`` of dataclasses.
        value: value from OmegaConf.
        name: name of the setting, with dots.

    Raises:
        UserError: for a setting that no dataclass has, true or false for a number, a number that is not finite, or one
            value where a list is wanted.
    """
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if isinstance(value, dict):
        return _convert_table(options, value, name)
    lists = [option for option in options if get_origin(option) is tuple]
    if isinstance(value, list) and lists:
        return [_convert(get_args(lists[0])[0], part, name) for part in value]
    if lists == list(options) and value is not None:
        raise UserError(f"{name}={_typed(value)} must be a list: write it as {name}=[{_typed(value)}]")
    return _convert_number(options, value, name) if isinstance(value, int | float) else value


def _convert_table(options: tuple[Any, ...], value: dict[str, Any], name: str) -> dict[str, Any]:
    """A dataclass's settings, or the entries of a ``Mapping``."""
    for option in options:
        if is_dataclass(option):
            types = get_type_hints(option)
            for key in value:
                if key not in types:  # one added with + is a mistake, not a comment
                    prefix = f"{name}." if name else ""
                    raise UserError(f"{prefix}{key}: there is no such setting{nearest(key, types)}")
            return {k: _convert(types[k], v, f"{name}.{k}".lstrip(".")) for k, v in value.items()}
        if get_origin(option) is Mapping:
            return {k: _convert(get_args(option)[1], v, f"{name}.{k}") for k, v in value.items()}
    return value


def _convert_number(options: tuple[Any, ...], value: float, name: str) -> Any:
    """A number, true or false; converted to text if the setting is a text (``name=2024``)."""
    numeric = bool({int, float} & set(options))
    if isinstance(value, bool):
        if numeric and bool not in options:
            raise UserError(f"{name}: {_typed(value)} is no number")
        return value
    if numeric and not math.isfinite(value):
        raise UserError(f"{name}: {value} is no finite number")
    return str(value) if not numeric and {str, Path} & set(options) else value


def _experiments(conf: Path) -> list[str]:
    return sorted(path.stem for path in (conf / "experiment").glob("*.yaml"))


def _keys(config: DictConfig) -> set[str]:
    def walk(node: Any, prefix: str) -> Iterator[str]:
        for key in node:
            name = f"{prefix}{key}"
            yield name
            if isinstance(node[key], dict):
                yield from walk(node[key], f"{name}.")

    return set(walk(OmegaConf.to_container(config), ""))


def _unknown(setting: str, known: set[str], conf: Path) -> str:
    """Error text for a setting that the chosen options do not have: the options of its group that have it, or the
    nearest name among the settings of all options.
    """
    group = setting.split(".")[0]
    having = {
        path.stem: {f"{group}.{key}" for key in _keys(OmegaConf.load(path))}  # type: ignore[arg-type]
        for path in sorted((conf / group).glob("*.yaml"))
    }
    if options := [name for name, keys in having.items() if setting in keys]:
        return f"{setting} is no setting of the {group} chosen here; {group}={' or '.join(options)} has it"
    if "." not in setting:
        tables = {
            f"{path.parent.name}.{key}"
            for path in sorted(conf.glob("*/*.yaml"))
            if path.parent.name not in ("experiment", "replicate", "scale", "sweep")
            for key in _keys(OmegaConf.load(path))  # type: ignore[arg-type]
        }
        if fuller := sorted(name for name in known | tables if name.rpartition(".")[2] == setting):
            return f"{setting}: there is no such setting; did you mean {' or '.join(fuller[:4])}?"
    return f"{setting}: there is no such setting{nearest(setting, known.union(*having.values()))}"


def one_line(error: Exception, conf: Path = CONF) -> str:
    """An error of Hydra or OmegaConf as one line, with the nearest name that exists in a directory of settings."""
    text = str(error)
    if option := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        for other, programs in _PROGRAMS.items():
            if other != conf and (other / option[1] / f"{option[2]}.yaml").is_file():
                return f"{option[1]}={option[2]} is for {programs}"
        group = conf / option[1]
        return f"{option[1]}={option[2]}: there is no such {option[1]}" + nearest(
            option[2], [path.stem for path in group.glob("*.yaml")]
        )
    if added := re.search(r"Could not override '(experiment|scale)'", text):
        typed = next((a for a in sys.argv[1:] if a.startswith(f"{added[1]}=")), f"{added[1]}=NAME")
        return f"{typed} lacks a plus: write +{typed}"
    if match := re.search(r"Could not (?:override|append|delete)[^']*'([^']+)'", text):
        setting = match[1]
        from hydra import compose, initialize_config_dir
        from hydra.core.global_hydra import GlobalHydra

        GlobalHydra.instance().clear()
        with initialize_config_dir(str(conf), version_base="1.3"):
            usual = compose("config")
        known = _keys(usual)
        if setting in known and isinstance(OmegaConf.select(usual, setting), DictConfig):
            return f"{setting} is a table; add entries to it with a plus: +{setting}.NAME=..."
        if setting in known:  # of another option of a group, such as corpus=
            return f"{setting} has no value here; give it one with a plus: +{setting}=..."
        return _unknown(setting.split("=")[0].lstrip("+~"), known, conf)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override!r} cannot be read; a setting is typed KEY=VALUE, in quotes where the shell would change "
            "it: 'KEY=[A,B]'"
        )
    text = re.sub(
        r"(Set the environment variable|See|see) [^.]*(hydra\.cc|HYDRA_FULL_ERROR)\S*( for [^.]*)?\.?",
        "",
        text,
    )
    return " ".join(text.split())
