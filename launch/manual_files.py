"""The reference page of files: artefacts of a run, their schemas with versions, and the columns of tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import polars as pl

from palimpsest.analysis.attacks import order as attack_order
from palimpsest.analysis.attacks import reshuffled as attack_reshuffled
from palimpsest.analysis.attacks import values as attack_values
from palimpsest.analysis.generation import continuations
from palimpsest.analysis.metrics import scored
from palimpsest.analysis.report import contrasts, forgetting, inputs, latent, posttrained, questions, results
from palimpsest.analysis.scoring import scores, token_statistics
from palimpsest.analysis.statistics import rows
from palimpsest.data import artifact, prepare, shards
from palimpsest.insertion import audit, exposures, interchange, interventions, items, ledger, plan
from palimpsest.insertion.families import table as own
from palimpsest.insertion.placement import explicit, paired
from palimpsest.launch import adaptive, dependence, export, export_items, import_plan, sweep, write_corpus
from palimpsest.launch.manual_text import body, documented, markdown, table
from palimpsest.pretrain import saved


@dataclass(frozen=True, slots=True)
class Artefact:
    """One kind of directory, or of files that a reader opens."""

    title: str
    place: str
    """Where it lies; below a run's directory unless it says otherwise."""
    program: str
    text: str
    module: ModuleType | None = None
    """Module with ``KIND`` and ``VERSION``; None for files without a manifest of their own."""
    tables: Mapping[str, tuple[ModuleType, str]] = field(default_factory=dict)
    """File -> module and name of its schema."""


ARTEFACTS = (
    Artefact(
        "Corpus",
        "`runs/corpora/<kind>-<digest>/`",
        "prepare",
        "`train.bin` and `train.idx` are Megatron's token files, `tokenizer.json` is that of `tokenizers`. No training "
        "reads the held-out documents. Runs that read the same text share a corpus.",
        prepare,
        {"heldout.parquet": (shards, "HELDOUT_SCHEMA"), "documents.parquet": (shards, "DOCUMENTS_SCHEMA")},
    ),
    Artefact(
        "Plan",
        "`plan/`",
        "plan",
        "All items with their assignment, and all exposures. The step of an exposure is `position // "
        "train.global_batch_size`, whatever the topology.",
        plan,
        {
            "items.parquet": (items, "ITEM_SCHEMA"),
            "wordings.parquet": (items, "WORDING_SCHEMA"),
            "probes.parquet": (items, "PROBE_SCHEMA"),
            "exposures.parquet": (exposures, "EXPOSURE_SCHEMA"),
            "edits.parquet": (interventions, "EDIT_SCHEMA"),
            "moved.parquet": (paired, "MOVED_SCHEMA"),
        },
    ),
    Artefact(
        "Checkpoints",
        "`perturbed/checkpoints/step_<number>/`, `twin/checkpoints/step_<number>/`",
        "train",
        "Megatron-core's `dist_checkpointing` format: any topology reads what another wrote. The number counts "
        "finished steps.",
        saved,
    ),
    Artefact(
        "Ledger",
        "`perturbed/ledger/<first>-<end>/`, `twin/ledger/<first>-<end>/`",
        "train",
        "The record of what was consumed, with one part for each checkpoint. The manifest of a part contains the "
        "digest of the part before it, so that an exchanged part is detected.",
        ledger,
        {"windows.parquet": (ledger, "WINDOW_SCHEMA"), "exposures.parquet": (ledger, "EXPOSURE_SCHEMA")},
    ),
    Artefact(
        "Audit",
        "`audit/`",
        "audit",
        "`audit.json`: `verdict` (PASS or FAIL), `checks` (name, passed, detail) and `failures` (lines).",
        audit,
    ),
    Artefact(
        "Scores",
        "`scores/perturbed/step_<number>/`, `scores/twin/step_<number>/`",
        "score",
        "One row per probe, with one list entry per token; about 10 bytes per token. Large plans have several parts "
        "per checkpoint (`step_<number>-<part>`): read them with a glob.",
        scores,
        {"scores.parquet": (token_statistics, "SCORE_SCHEMA")},
    ),
    Artefact(
        "Continuations",
        "`generated/perturbed/step_<number>/`, `generated/twin/step_<number>/`",
        "generate",
        "Texts that checkpoints generated after prompts.",
        continuations,
        {"generated.parquet": (continuations, "SCHEMA")},
    ),
    Artefact(
        "Attacks",
        "`attacks/perturbed/step_<number>/`, `attacks/twin/step_<number>/`",
        "attack",
        "Scores of membership attacks with passes of their own.",
        attack_values,
        {"attacks.parquet": (attack_values, "SCHEMA")},
    ),
    Artefact(
        "Order tests",
        "`derived/<model>-<digest>/`",
        "derived",
        "Log-likelihoods of the run's windows under a model that may be derived from the run; the result is in the "
        "manifest.",
        attack_order,
        {"windows.parquet": (attack_order, "SCHEMA")},
    ),
    Artefact(
        "Order tests of texts",
        "`reshuffled/<text>-<digest>/`",
        "derived",
        "Log-likelihoods of a text under the run's model and under models of other orders, which are in "
        "`reshuffled/from_<step>/seed_<seed>/`; the result is in the manifest.",
        attack_reshuffled,
        {"models.parquet": (attack_reshuffled, "SCHEMA")},
    ),
    Artefact(
        "Report",
        "`report/`",
        "report",
        "`report.html` works offline. `summary.json` has the numbers of its first screen. Every figure is also stored "
        "as PNG, SVG and CSV, and every CSV names its run (`source`, `seed`, `digest`).",
        inputs,
        {
            "metrics.parquet": (scored, "ROW_SCHEMA"),
            "estimates.csv": (rows, "ESTIMATE_SCHEMA"),
            "questions.csv": (questions, "QUESTION_SCHEMA"),
            "ec50.csv": (results, "EC50_SCHEMA"),
            "contrasts.csv": (contrasts, "SCHEMA"),
            "forgetting.csv": (forgetting, "RETAINED_SCHEMA"),
            "forgetting_curves.csv": (forgetting, "CURVE_SCHEMA"),
            "latent.csv": (latent, "SCHEMA"),
        },
    ),
    Artefact(
        "Post-trained models",
        "`posttrained/forget-<digest>/`",
        "posttrain",
        "One run for each method, scored like the pair, and the report that compares them with the leave-out twin.",
        posttrained,
    ),
    Artefact(
        "Exports for transformers",
        "`perturbed/export/step_<number>/`, `twin/export/step_<number>/`",
        "export",
        "A directory for `from_pretrained`: weights as safetensors, configuration, tokenizer, model card.",
        export,
    ),
    Artefact(
        "Item sets",
        "`items/`",
        "export_items",
        "lm-eval tasks, a membership benchmark, forget and retain sets.",
        export_items,
    ),
    Artefact(
        "Perturbed corpus",
        "`corpus-megatron/`, `corpus-jsonl/`",
        "write_corpus",
        "Token files with the plan applied, or JSONL with one line per window. In token files, neighbouring windows "
        "share a token; if the plan needs different tokens in the two windows, an exception is listed.",
        write_corpus,
        {"exceptions.parquet": (interchange, "EXCEPTION_SCHEMA")},
    ),
    Artefact(
        "Adaptive doses",
        "`adaptive/`",
        "adaptive",
        "`decisions.json`: the scores that a policy read at each checkpoint, and what it decided.",
        adaptive,
    ),
    Artefact(
        "Interaction",
        "`dependence/`",
        "dependence",
        "`dependence.json`: the interaction of experiments that share a run, with its interval.",
        dependence,
    ),
    Artefact(
        "Sweep",
        "`runs/sweeps/<experiment>-<digest>/`",
        "sweep",
        "`runs.jsonl` has one line per run; also logs, SLURM scripts and the sweep's report (`cells.csv`, `runs.csv`).",
        sweep,
    ),
    Artefact(
        "Explicit placements",
        "a Parquet file that `insertion.placements` names",
        "import_plan",
        "Exposures that were not drawn by Palimpsest; `import_plan` writes them from another tool's files.",
        import_plan,
        {"placements.parquet": (explicit, "SCHEMA")},
    ),
)


def write() -> str:
    """Markdown text of the reference page of files; nothing is written to disk."""
    kinds = [
        [f"[{one.title}](#{_anchor(one.title)})", one.place, f"`{one.program}`", _version(one)]
        for one in ARTEFACTS
    ]
    lines = [
        "# Files",
        "",
        "All files of a run are in `runs/<experiment>/<name>-<digest>/`; the digest changes with every setting that",
        "changes the result. Tables are Parquet (or CSV, in reports), manifests JSON. A directory is written under a",
        "temporary name and renamed when it is complete. A directory without `manifest.json` is unfinished and",
        "ignored.",
        "",
        *table(["what", "where", "program", "schema version"], kinds),
        "",
        "A schema version increases when a program that knows the previous version would misread the files. A program",
        "that finds another version than its own says so and ends with status 2.",
        "",
        "## Manifest",
        "",
        "`manifest.json` of every directory:",
        "",
        *_fields(artifact.Manifest),
    ]
    for one in ARTEFACTS:
        lines += ["", f"## {one.title}", "", f"{one.place}, by `palimpsest {one.program}`. {one.text}"]
        for name, (module, schema) in one.tables.items():
            lines += ["", f"### {one.title.split()[0]}: {name}", "", *_columns(module, schema)]
    lines += ["", "## Your own items", "", body(own.__doc__)]
    return "\n".join(lines) + "\n"


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-").replace("'", "")


def _version(one: Artefact) -> str:
    if one.module is None:
        return "-"
    return str(getattr(one.module, "VERSION", None) or one.module.SCHEMA_VERSION)


def _fields(kind: type) -> list[str]:
    return table(
        ["field", "what it holds"], [[f"`{name}`", markdown(text)] for name, text in documented(kind).items()]
    )


def _columns(module: ModuleType, schema: str) -> list[str]:
    """Columns with their types, and the text under the schema."""
    found: Any = getattr(module, schema)
    pairs = (
        [(one.name, str(one.type)) for one in found]
        if hasattr(found, "field")
        else [(name, _dtype(kind)) for name, kind in found.items()]
    )
    text = markdown(documented(module).get(schema, ""))
    if not text:
        raise ValueError(f"{module.__name__}.{schema} has no docstring")
    return ["Columns: " + ", ".join(f"`{name}` ({kind})" for name, kind in pairs) + ".", "", text]


def _dtype(kind: Any) -> str:
    """A type of Polars in words."""
    if isinstance(kind, pl.List):
        return f"list of {_dtype(kind.inner)}"
    name = str(kind if not isinstance(kind, type) else kind())
    return {"String": "text", "Boolean": "true or false"}.get(name, name.lower())
