"""The reference pages of what is registered by name: families of items, metrics, post-training methods."""

from __future__ import annotations

import inspect
import math
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from palimpsest.analysis.attacks import values as attacks
from palimpsest.analysis.figures import FIGURES
from palimpsest.analysis.figures.gallery import SIMULATED
from palimpsest.analysis.figures.registry import COLUMNS
from palimpsest.analysis.metrics import METRICS, generated
from palimpsest.analysis.metrics.registry import Metric
from palimpsest.data.tokenizer import TokenizerConfig, build
from palimpsest.insertion import families as modules
from palimpsest.insertion.families import registry
from palimpsest.insertion.families.registry import FamilyContext
from palimpsest.insertion.items import KINDS, Probe
from palimpsest.launch.compose import CONF
from palimpsest.launch.manual_text import arguments, body, code, heading, markdown, summary, table
from palimpsest.pretrain.posttraining.edits import EDITS
from palimpsest.pretrain.posttraining.methods import METHODS

NEEDS_MORE = {
    "traps": "sampled from the reference model",
    "passages": "the opening of a held-out document of the corpus",
}
"""Families whose items come from a corpus or a model -> what an item is."""
SHOWN, PROBES = 320, 8
"""Characters of an example, and questions about it, that are shown."""
TOPICS = {
    "likelihood": "Likelihood",
    "extraction": "Verbatim extraction",
    "membership": "Membership",
    "questions": "Questions",
}
"""Module of metrics -> heading."""
FROM = {
    "entropy": "entropy of each prediction",
    "variance": "variance of each prediction",
    "margin": "margin to the argmax",
    "zlib_bytes": "the text's zlib size",
    "target": "the target's text",
    "bits": "`bits` of the item",
    "probe_bits": "`bits` of the probe",
    "reference": "the twin, or another reference run, at the same step",
}


def families() -> str:
    """The page of item families."""
    kinds = [[f"`{name}`", meaning] for name, meaning in KINDS.items()]
    names = registry.names()
    lines = [
        "# Item families",
        "",
        "`insertion=NAME` inserts the items of one family; a design takes several",
        "(`conf/insertion/three_families.yaml`). `palimpsest plan family=NAME show=5` prints five items with their",
        "probes. Settings of a family are typed as `insertion.families.NAME.SETTING=VALUE`.",
        "",
        "Every item has the probe `verbatim`, its whole text: one forward pass over it gives likelihood, membership",
        "scores, and extraction after every prefix. The other probes of an item are its questions:",
        "",
        *table(["kind of probe", "what it is"], kinds),
        "",
        *table(["family", "items"], [[f"[`{name}`](#{name})", _module(name)[0]] for name in names]),
    ]
    for name in names:
        function = registry.check(name, {})
        lines += ["", f"## {name}", "", *_paragraphs(name), ""]
        known: Mapping[str, Any] = getattr(function, "__kwdefaults__", None) or {}
        meanings = arguments(function.__doc__)
        rows = [[f"`{key}`", code(known[key]), _capital(meanings[key])] for key in known]
        lines += [*table(["setting", "default", "meaning"], rows), ""] if rows else []
        lines += _example(name)
    return "\n".join(lines).rstrip() + "\n"


def _module(name: str) -> tuple[str, str]:
    """First sentence of a family's module docstring, and all of it."""
    module = inspect.getmodule(registry.check(name, {}))
    assert module is not None
    whole = markdown(module.__doc__)
    first = " ".join(whole.split("\n\n")[0].split())
    return _capital(first.split(": ", 1)[-1] if ": " in first.split("(")[0] else first), whole


def _paragraphs(name: str) -> list[str]:
    return [_module(name)[1], "", f"**Makes:** {body(registry.check(name, {}).__doc__)}"]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _example(name: str) -> list[str]:
    """The first item of a family with its probes, or what it is."""
    if name in NEEDS_MORE:
        return [f"An item is {NEEDS_MORE[name]}."]
    texts = [
        path.read_text(encoding="utf-8") for path in sorted(Path(str(modules.__file__)).parent.glob("*.py"))
    ]
    context = FamilyContext(1, build(iter(texts), TokenizerConfig(vocab_size=512)), [])
    item = registry.make(name, context, 1, {})[0]
    probes: dict[tuple[str, str], Probe] = {}
    for probe in item.probes[1:]:
        probes.setdefault((probe.kind, probe.name.split(" #")[0]), probe)
    rows = [
        [f"`{kind}`", question, f"{_end(one.prompt)}**{_cut(one.target, 60)}**"]
        for (kind, question), one in list(probes.items())[:PROBES]
    ]
    claimed = "" if item.bits is None else f", {item.bits:.1f} bits"
    text = _cut(item.text, SHOWN)
    lines = text.splitlines() if "\n" in text else textwrap.wrap(text, 100)
    shown = [f"An item ({len(item.text)} characters{claimed}):", "", "```text", *lines, "```", ""]
    if rows:
        shown += table(["asked as", "question", "end of the prompt, and **target**"], rows)
    if len(probes) > PROBES:
        shown += ["", f"And {len(probes) - PROBES} more questions."]
    return shown


def _cut(text: str, most: int) -> str:
    return text.strip() if len(text) <= most else f"{text[:most].strip()} ..."


def _end(prompt: str) -> str:
    text = " ".join(prompt.split())
    return f"{text if len(text) < 60 else '... ' + text[-55:]} " if text else ""


def metrics() -> str:
    """The page of metrics."""
    lines = [
        "# Metrics",
        "",
        "A metric is a function of the stored scores: for every token of a probe its log-probability in nats, its rank",
        "(0: the argmax), entropy, variance and margin. A higher value means *more memorised*, unless the metric says",
        "otherwise. Those *computed when named* need `report.metrics=[NAME]`, or in Python `run.metrics(NAME)`; the",
        "others are in every report.",
        "",
        "In formulas, `k` is `report.prefix_tokens`, `m` is `report.suffix_tokens`; `T` counts the tokens of a text.",
    ]
    for topic, title in TOPICS.items():
        chosen = [one for one in METRICS.values() if one.compute.__module__.rsplit(".", 1)[-1] == topic]
        lines += ["", f"## {title}"]
        for one in chosen:
            lines += ["", *_metric(one)]
    rows = [[f"`{name}`", formula] for name, formula in generated.FORMULAS.items()]
    lines += [
        "",
        "## Generated text",
        "",
        "These metrics compare continuations made by `palimpsest generate` with the text that follows the prompt. All",
        "are",
        f"between 0 and 1; near-verbatim means an edit similarity of {generated.NEAR} or more.",
        "",
        *table(["metric", "formula"], rows),
    ]
    rows = [[f"`{name}`", one.label, f"`{one.formula}`", one.source] for name, one in attacks.KNOWN.items()]
    lines += [
        "",
        "## Membership attacks with passes of their own",
        "",
        "`palimpsest attack` computes these on the whole text of each item (`attack.names`); higher = member.",
        "",
        *table(["name", "label", "formula", "source"], rows),
    ]
    strangers = {one.compute.__module__.rsplit(".", 1)[-1] for one in METRICS.values()} - TOPICS.keys()
    if strangers:
        raise ValueError(f"metrics of {min(strangers)} have no heading in TOPICS")
    return "\n".join(lines) + "\n"


def _metric(one: Metric) -> list[str]:
    facts = {
        "formula": f"`{one.formula}`",
        "unit": one.unit + _span(*one.bounds),
        "source": re.sub(r"[a-z]+(_[a-z0-9]+)+", lambda found: _linked(found[0]), one.source),
        "of": ", ".join(f"`{kind}`" for kind in one.needs) + " probes",
        "also reads": ", ".join(FROM[name] for name in one.reads),
        "higher means": "" if one.higher == "more memorised" else one.higher,
        "computed": "always" if one.default else "when named",
    }
    listed = [f"- {name}: {fact}" for name, fact in facts.items() if fact]
    return [f"### {one.name}", "", body(one.compute.__doc__), "", *listed]


def _span(low: float, high: float) -> str:
    """Range of a metric, after its unit."""
    if math.isinf(low):
        return "" if math.isinf(high) else f", at most {high:g}"
    return f", at least {low:g}" if math.isinf(high) else f", from {low:g} to {high:g}"


def _linked(name: str) -> str:
    """Name of a metric or of another program's measure, as code; a metric's links to it."""
    return f"[`{name}`](#{name})" if name in METRICS else f"`{name}`"


def figures() -> str:
    """The page of figures; the pictures are those of ``palimpsest gallery``."""
    lines = [
        "# Figures",
        "",
        "A figure is a function from rows to a chart: `figures.NAME(rows)`, after",
        "`from palimpsest.analysis import figures`, or `run.figures.NAME()` if the run has the rows that it needs.",
        '`figures.save(chart, FILE, style="paper")` writes PDF, SVG, PNG and CSV.',
        "",
        f"*{SIMULATED}*: the pictures show what each figure looks like. They are made by",
        "`palimpsest gallery docs/reference/figures formats=svg`.",
    ]
    for name, entry in FIGURES.items():
        rows = [[f"`{column}`", COLUMNS[column][0], COLUMNS[column][1]] for column in entry.needs]
        rows += [
            [f"`{column}`", COLUMNS.get(column, ("",))[0], _optional(column)] for column in entry.optional
        ]
        lines += [
            "",
            f"## {name}",
            "",
            f"**{entry.number}. {entry.title}.** {body(entry.draw.__doc__)}",
            "",
            f"![{entry.title}](figures/{entry.number:02d}_{name}.svg)",
            "",
            *table(["column of its rows", "kind", "meaning"], rows),
        ]
    return "\n".join(lines) + "\n"


def _optional(column: str) -> str:
    meaning = COLUMNS[column][1] if column in COLUMNS else "as the text says"
    return f"{meaning}; may be absent"


def posttraining() -> str:
    """The page of post-training methods."""
    lines = [
        "# Post-training methods",
        "",
        "`palimpsest posttrain +experiment=NAME posttrain=METHOD` applies a method to a checkpoint of the perturbed",
        "run and compares the result with the leave-out twin. A step of a loss minimises",
        "`gamma loss(forget) + alpha loss(retain)`; `L` is the mean loss per token, `L_f` that of the forget set.",
        "",
        "A method's own settings are typed `+posttrain.settings.NAME=VALUE`; those of all methods are in",
        "[Settings](settings.md#posttrain).",
        "",
    ]
    rows = []
    for path in sorted((CONF / "posttrain").glob("*.yaml")):
        if path.stem != "base":
            rows.append(_option(path))
    lines += table(["`posttrain=`", "what it does", "settings with defaults"], rows)
    return "\n".join(lines) + "\n"


def _option(path: Path) -> list[str]:
    """A row of the table of methods."""
    given: Any = OmegaConf.to_container(OmegaConf.load(path))
    method = given["method"]
    entry: Any = METHODS.get(method) or EDITS.get(method)
    function = getattr(entry, "loss", None) or getattr(entry, "function", None)
    said = heading(path)
    if method == path.stem and function is not None:
        said = f"{said}{'' if not said or said[-1] in '.?' else '.'} {summary(function.__doc__)}"
    settings = {**(entry.settings if entry is not None else {}), **given.get("settings", {})}
    others = {key: value for key, value in given.items() if key not in ("defaults", "method", "settings")}
    if method in METHODS:
        used = METHODS[method]
        settings = {"gamma": 1.0, "alpha": 1.0 if used.retain else 0.0, **settings}
    shown = [f"`{key}={value:g}`" for key, value in settings.items()]
    shown += [f"`posttrain.{key}={value}`" for key, value in others.items()]
    kind = "edit of weights" if method in EDITS else "loss" if method in METHODS else "training"
    return [f'<a id="{path.stem}"></a>`{path.stem}`', f"*{kind}*: {said.strip()}", ", ".join(shown) or "none"]
