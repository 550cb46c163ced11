"""A default stands in its dataclass, and a family's in its function; where conf/ repeats one, they are equal."""

from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Union, get_args, get_origin, get_type_hints

import pytest
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from palimpsest.data.prepare import CorpusConfig
from palimpsest.insertion.families import registry
from palimpsest.insertion.settings import InsertionConfig
from palimpsest.launch.compose import CONF
from palimpsest.launch.experiment import Experiment, LauncherConfig
from palimpsest.pretrain.config import OptimizerConfig, PosttrainConfig

CHOSEN = {
    **{f"corpus/{name}.yaml source.min_words": 1 for name in ("datasets", "jsonl", "parquet", "text")},
    **{f"corpus/{name}.yaml source.min_words": 0 for name in ("megatron", "olmo")},
    **{f"corpus/{name}.yaml tokenizer.kind": "file" for name in ("megatron", "olmo")},
    **{f"corpus/{name}.yaml deduplicate": False for name in ("megatron", "olmo")},
    "corpus/tokenized.yaml source.paths": ("corpora/train",),
    **{f"corpus/{name}.yaml source.streaming": True for name in ("c4", "dclm", "fineweb", "wikipedia")},
    "corpus/c4.yaml source.paths": ("allenai/c4",),
    "corpus/c4.yaml source.dataset_name": "en",
    "corpus/c4.yaml source.files": "en/c4-train.*.json.gz",
    "corpus/dclm.yaml source.paths": ("mlfoundations/dclm-baseline-1.0",),
    "corpus/dclm.yaml source.files": "global-shard_*/local-shard_*/*.jsonl.zst*",
    "corpus/fineweb.yaml source.paths": ("HuggingFaceFW/fineweb",),
    "corpus/fineweb.yaml source.dataset_name": "sample-10BT",
    "corpus/fineweb.yaml source.files": "sample/10BT/*.parquet",
    "corpus/wikipedia.yaml source.paths": ("wikimedia/wikipedia",),
    "corpus/wikipedia.yaml source.dataset_name": "20231101.en",
    "corpus/wikipedia.yaml source.files": "20231101.en/*.parquet",
    "corpus/tokenized.yaml tokenizer.path": "corpora/tokenizer.json",
}
"""Settings in which an option of a group is meant to differ from the default."""


def options(kind):
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def default_of(field):
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else MISSING


def repeated(kind, values, name=""):
    """(setting, value in YAML, default) of every setting below a dataclass that has both."""
    types = get_type_hints(kind)
    for field in fields(kind):
        if field.name not in values:
            continue
        value, here = values[field.name], f"{name}{field.name}"
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, str) and text.startswith(("${", "???")) for text in texts):
            continue
        nested = [option for option in options(types[field.name]) if is_dataclass(option)]
        if nested and isinstance(value, dict):
            yield from repeated(nested[0], value, f"{here}.")
        elif default_of(field) is not MISSING:
            yield here, TypeAdapter(types[field.name]).validate_python(value), default_of(field)


@cache
def read(path):
    values = OmegaConf.to_container(OmegaConf.load(CONF / path), resolve=False)
    values.pop("defaults", None)
    return values


PAIRS = [
    *((f"config.yaml {name}", *rest) for name, *rest in repeated(Experiment, read("config.yaml"))),
    *(
        (f"{path} {name}", *rest)
        for path, kind in (
            ("optimizer/adamw.yaml", OptimizerConfig),
            ("posttrain/base.yaml", PosttrainConfig),
            ("insertion/base.yaml", InsertionConfig),
            ("launcher/local.yaml", LauncherConfig),
            ("launcher/slurm.yaml", LauncherConfig),
            *((f"corpus/{path.name}", CorpusConfig) for path in sorted((CONF / "corpus").glob("*.yaml"))),
        )
        for name, *rest in repeated(kind, read(path))
    ),
]


def test_settings_that_stand_in_yaml_and_dataclass_are_found():
    assert len(PAIRS) > 80
    assert {
        "config.yaml train.precision",
        "config.yaml runtime.hang_minutes",
        "insertion/base.yaml max_share",
    } <= {name for name, *_ in PAIRS}


@pytest.mark.parametrize(("name", "given", "default"), PAIRS, ids=[pair[0] for pair in PAIRS])
def test_yaml_repeats_the_default_of_its_dataclass(name, given, default):
    assert given == CHOSEN.get(name, default)


FAMILIES = [
    path.stem for path in sorted((CONF / "insertion").glob("*.yaml")) if path.stem in registry.names()
]
OF_FAMILY = {
    "traps": {"path": "trained"},  # a reference model that needs nothing of the user
}
"""Settings of a family's own file that are meant to differ from the function's defaults."""


def test_every_family_has_a_file_of_its_own():
    assert sorted(FAMILIES) == sorted(registry.names())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_s_file_repeats_the_defaults_of_its_function_and_all_of_them(family):
    defaults = registry.check(family, {}).__kwdefaults__ or {}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
    assert read(f"insertion/{family}.yaml")["families"][family] == plain | OF_FAMILY.get(family, {})
