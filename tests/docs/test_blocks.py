"""What README and docs name exists: programs, settings that compose, files, links. Seconds; test_typed.py runs it."""

import re
import shlex

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from palimpsest.data.errors import UserError
from palimpsest.insertion.families import registry
from palimpsest.launch import sweep
from palimpsest.launch.compose import CONF, RELEASED, build, one_line, scaled, values_of
from palimpsest.launch.experiment import Experiment
from palimpsest.launch.released_settings import ReleasedConfig
from tests.conftest import REPO
from tests.docs import pages

EVERY = pytest.mark.parametrize("path", pages.PAGES, ids=pages.name_of)
LANGUAGES = {"bash", "sh", "python", "text", "json", "yaml", "csv"}
README = REPO / "README.md"
TOP = (
    "conf",
    "data",
    "insertion",
    "pretrain",
    "analysis",
    "launch",
    "tests",
    "docs",
    "results",
    "benchmarks",
    ".ci",
)
ENDINGS = ("bin", "csv", "html", "idx", "json", "jsonl", "md", "parquet", "py", "yaml", "cff")
MADE = ("results/replications/", "corpora/", "data/train", "data/de", "/data/")
"""Beginnings of paths that are the reader's own."""
AND = {
    "corpus=megatron": ["corpus.source.paths=[x]", "corpus.tokenizer.path=x"],
    "corpus=olmo": ["corpus.source.paths=[x]", "corpus.source.eod_id=0", "corpus.tokenizer.path=x"],
}
"""What a recipe wants besides, from the cell that it stands in."""


@EVERY
def test_blocks_say_what_they_are(path):
    for block in pages.blocks(path):
        assert block.language in LANGUAGES or path == README, block.text
        if block.language == "sh":
            assert not block.tested, f"say why it is not tested, or write bash: {block.text}"
            assert len(block.text.splitlines()[0]) > len(pages.NOT_TESTED) + 5


@EVERY
def test_every_program_is_there(path):
    called = {found.program for found in pages.commands(path)}
    called |= {word for text in pages.code(path) for word in re.findall(r"^palimpsest (\w+)", text)}
    assert called - {"PROGRAM"} <= pages.programs()


@EVERY
def test_every_command_composes(path, tmp_path):
    for block in pages.blocks(path):
        if block.title.startswith("conf/"):
            file = tmp_path / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
    for found in pages.commands(path):
        if found.settings is None:
            continue
        for words in alternatives(found):
            made = composed(found, words, tmp_path)
            if found.ranks > 1 and made is not None:
                made.parallel.check(found.ranks, made.model, made.train)


def alternatives(found):
    """The command lines of a sweep's first and last run; any other program's own."""
    if found.program != "sweep" or any(word.startswith("+sweep=") for word in found.words):
        return [found.settings]
    lines = [arguments for arguments, _ in sweep.expand(found.settings)]
    return [lines[0], lines[-1]]


def composed(found, words, place):
    """The experiment of a command line; None where a model or another program's settings were only composed."""
    named = next((word for word in words if word.startswith("+sweep=")), None)
    if named is not None:
        assert (CONF / "sweep" / f"{named.partition('=')[2]}.yaml").is_file(), named
        return None
    conf, kind = (RELEASED, ReleasedConfig) if found.program == "released" else (CONF, Experiment)
    words = [word for word in words if "=" in word and not word.startswith("--")]
    if any(word.startswith("--config-dir=") for word in found.words):
        words.append(f"hydra.searchpath=[file://{place / 'conf'}]")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            config = compose("config", scaled(words))
        outside = any("huggingface" in word or "EleutherAI" in word for word in words)
        if kind is Experiment and not outside:
            return build(config)
        values_of(kind, config, conf)
    except Exception as error:
        told = str(error) if isinstance(error, UserError) else one_line(error, conf)
        raise AssertionError(f"{shlex.join(words)}: {told}") from error
    return None


@pytest.mark.parametrize(
    "path", [one for one in pages.PAGES if "reference" not in one.parts], ids=pages.name_of
)
def test_settings_in_the_text_exist(path):
    known = set(
        re.findall(r"^\| `([\w.]+)`<br>", (REPO / "docs/reference/settings.md").read_text(), re.MULTILINE)
    )
    roots = {name.split(".")[0] for name in known} - {"run"}  # in Python, a run that is open
    tables = {name.rpartition(".")[0] for name in known}
    wrong = []
    for text in pages.code(path):
        for word in re.findall(r"(?<![\w./=-])[+~]?[a-z_]+\.[a-z_.]+(?==|$)", text):
            name = word.lstrip("+~").rstrip(".")
            file = name.rsplit(".", 1)[-1] in ENDINGS and "=" not in text
            if file or name.split(".")[0] not in roots or name in known | tables:
                continue
            if not of_a_table(name, known):
                wrong.append(word)
        for group, option in re.findall(
            r"(?<![\w.])(corpus|model|insertion|optimizer|posttrain|launcher)=([a-z]\w*)", text
        ):
            if not (CONF / group / f"{option}.yaml").is_file() and not written(
                path, f"conf/{group}/{option}.yaml"
            ):
                wrong.append(f"{group}={option}")
        for group, option in re.findall(r"\+(experiment|sweep|scale)=([a-z]\w*)", text):
            places = [CONF / group, RELEASED / group]
            there = any((place / f"{option}.yaml").is_file() for place in places)
            if not there and not written(path, f"conf/{group}/{option}.yaml"):
                wrong.append(f"+{group}={option}")
    assert wrong == []


def of_a_table(name, known):
    """A family's setting, or one below a setting that is a table of names."""
    if found := re.fullmatch(r"insertion\.families\.(\w+)\.(\w+)", name):
        return found[1] not in registry.names() or found[2] in (
            registry.check(found[1], {}).__kwdefaults__ or {}
        )
    parts = name.split(".")
    return any(".".join(parts[:n]) in known for n in range(1, len(parts))) or name in (
        "insertion.families",
        "posttrain.settings",
    )


def written(path, name):
    return any(block.title == name for block in pages.blocks(path))


@EVERY
def test_files_named_in_the_text_exist(path):
    wrong = []
    for text in pages.code(path):
        if not re.fullmatch(r"(?:\.ci|\w+)/[\w./*-]*", text) or text.split("/")[0] not in TOP:
            continue
        if re.search(r"[A-Z]{2,}", text) and not text.endswith(".md"):  # a placeholder
            continue
        if text.startswith(MADE) or written(path, text):
            continue
        if not list(REPO.glob(text.rstrip("/"))):
            wrong.append(text)
    assert wrong == []


def test_links_of_the_readme_are_there():
    links = re.findall(r"\]\(([^)#]+)(?:#([\w-]+))?\)", README.read_text())
    local = [(name, anchor) for name, anchor in links if "://" not in name]
    assert len(local) > 12
    assert [name for name, _ in local if not (REPO / name).exists()] == []
    for name, anchor in local:
        if anchor:
            assert re.search(rf"^#+ {anchor}$", (REPO / name).read_text(), re.MULTILINE), anchor


def test_the_readme_is_short():
    assert len(README.read_bytes()) <= 8192


@pytest.mark.parametrize(
    "command",
    [
        part
        for row in re.findall(
            r"^\| .* \| (.*) \|$", (REPO / "docs/howto/recipes.md").read_text(), re.MULTILINE
        )
        for part in re.findall(r"`([^`]+=[^`]*)`", row)
    ],
)
def test_every_recipe_composes_with_the_quickstart(command):
    words = shlex.split(command)
    if words[0] == "palimpsest":
        assert composed(pages.command(command), pages.command(command).settings, REPO) is not None
    elif command.split("=")[0] in (
        "corpus.tokenizer.path",
        "corpus.first_window",
        "gpu_gib",
        "model.revision",
    ):
        return  # half of the setting beside it
    else:
        composed(pages.Command("run", words), ["+experiment=quickstart", *words, *AND.get(command, [])], REPO)
