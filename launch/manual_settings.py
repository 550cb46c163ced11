"""The reference page of all settings, from the dataclasses and the files of ``conf/``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from palimpsest.data.prepare import CorpusConfig
from palimpsest.insertion.arms import Arm
from palimpsest.launch.cli import PROGRAMS
from palimpsest.launch.compose import CONF, RELEASED
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.manual_text import code, commented, documented, heading, markdown, summary, table
from palimpsest.launch.released_settings import ReleasedConfig

GROUPS = {
    "corpus": "installed_docs",
    "model": "nano",
    "insertion": "base",
    "optimizer": "adamw",
    "posttrain": "base",
    "launcher": "slurm",
}
"""Group -> the file that says what its settings mean."""
CHOICES = ("corpus", "model", "insertion", "optimizer", "posttrain", "launcher")
NAMES = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    Path: "path",
    Any: "any value",
}
UNSET = object()


def write() -> str:
    """Markdown text of the reference page of settings; nothing is written to disk."""
    usual = composed(CONF)
    said = comments()
    lines = [
        "# Settings",
        "",
        "A setting is typed after a program's name as `KEY=VALUE`, or written into a file of `conf/`. A key that has",
        "no value in these files needs a plus sign: `+corpus.source.max_words=5000`. `palimpsest run --help-all`",
        "prints all settings, `palimpsest run +experiment=quickstart --cfg job` those of an experiment. `null` means",
        "none.",
        "",
        "The defaults below are the values without an experiment (`conf/config.yaml` with the groups that it names).",
        "`+experiment=NAME` and the options of a group, such as `model=tiny`, set other values.",
        "",
        "## General",
        "",
        *section(Experiment, "", usual, said, own=True),
    ]
    types = get_type_hints(Experiment)
    for group in (name for name, kind in types.items() if is_dataclass(kind)):
        kind = types[group]
        lines += ["", f"## {group}", "", summary(kind.__doc__), ""]
        if group == "posttrain":
            lines += [
                "`posttrain=NAME` chooses a method; [Post-training methods](posttraining.md) lists them.",
                "",
            ]
        elif group in CHOICES:
            lines += [*options(CONF / group, group), ""]
        lines += section(kind, group, usual.get(group), said)
    said = commented(RELEASED / "config.yaml")
    lines += [
        "",
        "## Released models",
        "",
        "`palimpsest released` has its own configuration (`conf/released/config.yaml`), with these settings besides",
        "those of `score` and `report`:",
        "",
        *section(ReleasedConfig, "", composed(RELEASED), said, own=True),
    ]
    return "\n".join(lines) + "\n"


def composed(conf: Path) -> dict[str, Any]:
    """The configuration without an experiment, references to other settings unresolved."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf), version_base="1.3"):
        values = OmegaConf.to_container(compose("config"), resolve=False)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def comments() -> dict[str, str]:
    """Setting -> comment in the files of ``conf/``."""
    said = commented(CONF / "config.yaml")
    for group, name in GROUPS.items():
        said |= {f"{group}.{key}": text for key, text in commented(CONF / group / f"{name}.yaml").items()}
    return said


def options(place: Path, group: str) -> list[str]:
    """Options of a group with the first sentence of each file's comment."""
    rows = []
    for path in sorted(place.glob("*.yaml")):
        if path.stem != "base":
            rows.append([f"`{group}={path.stem}`", heading(path).split(". ")[0].rstrip(".:") or "-"])
    return table(["option", "what it is"], rows)


def section(
    kind: type, name: str, usual: Any, said: Mapping[str, str], *, own: bool = False, deep: int = 3
) -> list[str]:
    """Table of a dataclass's settings, and a section for each dataclass inside.

    Args:
        kind: the dataclass.
        name: name of the setting that has it, with dots.
        usual: its default values, if the configuration has them.
        said: setting -> comment.
        own: leave the dataclasses inside out.
        deep: level of the headings inside.
    """
    rows: list[list[str]] = []
    inside: list[tuple[str, type, Any]] = []
    types, docs = get_type_hints(kind), documented(kind)
    for one in fields(kind):
        full = f"{name}.{one.name}".lstrip(".")
        nested = next(dataclasses_in(types[one.name]), None)
        table_of_own = is_dataclass(types[one.name])
        if table_of_own and own:
            continue
        meaning = docs.get(one.name) or _factor(one.name, kind) or _sentence(said.get(full, ""))
        if nested is not None and nested is not kind:
            corpora = nested is CorpusConfig and bool(name)  # of mixture.corpora: described once
            if not corpora:
                values = usual.get(one.name) if isinstance(usual, dict) and table_of_own else None
                inside.append((full, nested, values))
            place = "corpus" if corpora else full.replace(".", "")
            meaning = meaning if table_of_own else f"{meaning} [Its settings](#{place})."
        if table_of_own:
            continue
        if not meaning:
            raise ValueError(f"{kind.__module__}.{kind.__name__}.{one.name} has no docstring")
        shown = " ".join(markdown(meaning).split())
        rows.append([f"`{full}`<br>{typename(types[one.name])}{default(one, usual)}", shown])
    lines = table(["setting", "meaning"], rows) if rows else []
    for full, nested, values in inside:
        lines += ["", f"{'#' * deep} {full}", "", summary(nested.__doc__), ""]
        lines += section(nested, full, values, said, deep=min(deep + 1, 4))
    return lines


def _factor(name: str, kind: type) -> str:
    """Meaning of a factor, of which the description of an arm has the levels."""
    return documented(Arm).get(name, "") if kind.__module__.startswith("palimpsest.insertion") else ""


def _sentence(comment: str) -> str:
    program, colon, rest = comment.partition(": ")
    if colon and {*program.split(", ")} <= PROGRAMS.keys():
        return f"``{program}``: {rest}."
    return f"{comment[:1].upper()}{comment[1:]}{'' if comment.endswith('.') else '.'}" if comment else ""


def default(one: Field[Any], usual: Any) -> str:
    """Default of a field: the configuration's, or else the dataclass's."""
    value: Any = UNSET
    if isinstance(usual, dict) and one.name in usual:
        value = usual[one.name]
    elif one.default is not MISSING:
        value = one.default
    elif one.default_factory is not MISSING:
        value = one.default_factory()
    if value is UNSET or value == "???":
        return "; must be set"
    if isinstance(value, str) and value.startswith("${"):
        return f"; as `{value[2:-1]}`"
    if is_dataclass(value) or (isinstance(value, tuple) and any(map(is_dataclass, value))):
        return ""
    if value in ((), [], {}):
        return "; empty"
    if isinstance(value, dict) and len(value) > 2:
        return f"; {', '.join(f'`{key}`' for key in value)}"
    return f"; {code(value)}"


def dataclasses_in(kind: Any) -> Iterator[type]:
    """The dataclasses inside a type."""
    if is_dataclass(kind) and isinstance(kind, type):
        yield kind
    for part in get_args(kind):
        yield from dataclasses_in(part)


def typename(kind: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return (
            " or ".join(f"`{part}`" for part in parts)
            if len(parts) < 3
            else ", ".join(f"`{p}`" for p in parts)
        )
    if origin in (Union, UnionType):
        names = list(dict.fromkeys(typename(part) for part in parts if part is not NoneType))
        return ", or ".join(names)
    if origin is tuple:
        return f"list of {_several(parts[0])}"
    if origin is Mapping or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return f"table of {_several(parts[1])} by name"
    if is_dataclass(kind):
        return "table"
    return NAMES.get(kind, str(getattr(kind, "__name__", kind)))


def _several(kind: Any) -> str:
    name = typename(kind)
    return {
        "whole number": "whole numbers",
        "number": "numbers",
        "text": "texts",
        "table": "tables",
        "any value": "values",
    }.get(name, name)
