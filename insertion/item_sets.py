"""A plan's items for other tools: lm-eval tasks, a membership benchmark, forget and retain sets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from palimpsest.insertion.leave_out import forget_set
from palimpsest.insertion.plan import Plan

FORGET_SHARE = 0.1
"""Share of the forget set (:func:`insertion.leave_out.forget_set`)."""
LOADER = '''"""Loads the questions beside this file, for lm_eval."""

from pathlib import Path

import datasets


def load(file, **_):
    path = str(Path(__file__).with_name(file))
    return {"test": datasets.load_dataset("json", data_files=path, split="train")}
'''


def write(plan: Plan, directory: Path, *, name: str, seed: int) -> dict[str, Any]:
    """Write ``lm_eval/``, ``membership/`` and ``open_unlearning/``, each with a data card, ``README.md``.

    Args:
        plan: plan with items, doses and probes.
        directory: existing directory.
        name: name of the experiment, the prefix of the lm-eval task names.
        seed: seed of the draw of the forget set.

    Returns:
        Counts: ``tasks`` (name -> questions), ``choices_left_out`` (questions that lm_eval cannot ask), ``members``,
        ``nonmembers``, ``forget``, ``retain``.
    """
    card = _card(plan, name)
    tasks, left_out = _lm_eval(plan, directory / "lm_eval", name, card)
    members, others = _membership(plan, directory / "membership", card)
    forget, retain = _open_unlearning(plan, directory / "open_unlearning", seed, card)
    return {
        "tasks": tasks,
        "choices_left_out": left_out,
        "members": members,
        "nonmembers": others,
        "forget": forget,
        "retain": retain,
    }


def _card(plan: Plan, name: str) -> str:
    """Common part of all cards: the plan, items by family and dose, licences."""
    counts = plan.items.group_by("family", "dose").len().sort("family", "dose")
    licences = sorted({licence or "none given" for licence in plan.items["licence"]})
    lines = [
        f"Items of the controlled-insertion experiment `{name}`, made by Palimpsest.",
        "",
        f"- Plan: digest `{plan.digest}`, seed {plan.manifest.config.get('seed', 'not recorded')}.",
        "- Dose: times that an item was inserted into the training text; 0: never. Doses were drawn at random.",
        f"- Licence of the texts: {'; '.join(licences)}.",
        "",
        "| family | dose | items |",
        "|---|---:|---:|",
        *(f"| {family} | {dose} | {n} |" for family, dose, n in counts.iter_rows()),
    ]
    return "\n".join(lines) + "\n"


def _lines(path: Path, rows: Iterable[Any]) -> int:
    """Write JSON lines. Returns their number."""
    texts = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return len(texts)


def _lm_eval(plan: Plan, directory: Path, name: str, card: str) -> tuple[dict[str, int], int]:
    """Write the tasks. Returns their numbers of questions, and the number of choices that lm_eval cannot ask."""
    directory.mkdir(parents=True)
    items = plan.items.select("item_id", "dose", "stratum")
    probes = plan.probes.filter(pl.col("item_id").is_not_null()).join(
        items, on="item_id", maintain_order="left"
    )
    tasks: dict[str, int] = {}
    left_out = 0
    for family in sorted(probes["family"].unique()):
        own = probes.filter(pl.col("family") == family)
        own_tasks, without = _tasks(own)
        left_out += without
        for kind, settings, rows in own_tasks:
            task = f"{name}_{family}_{kind}".replace("-", "_").replace(".", "_")
            tasks[task] = _lines(directory / f"{task}.jsonl", rows)
            (directory / f"{task}.yaml").write_text(_yaml(task, settings), encoding="utf-8")
    (directory / "loader.py").write_text(LOADER, encoding="utf-8")
    table = "\n".join(f"| {task} | {n} |" for task, n in tasks.items())
    (directory / "README.md").write_text(
        f"# lm-eval tasks\n\n{card}\nRun them on an exported checkpoint:\n\n"
        "    lm_eval --model hf --model_args pretrained=EXPORT,dtype=float32,add_bos_token=True \\\n"
        f"      --include_path THIS_DIRECTORY --tasks {next(iter(tasks), 'TASK')} --log_samples --output_path OUT\n\n"
        "Palimpsest's own scores put the end-of-document token before every text, as training does; so does lm_eval\n"
        "with `add_bos_token=True`. Without it, questions with a prompt begin with the prompt's first token, and its\n"
        "numbers differ. `--log_samples` gives the log-likelihood of every question; its `doc` names item and dose.\n\n"
        f"| task | questions |\n|---|---:|\n{table}\n\n"
        f"Not in these tasks, because lm_eval cannot ask them: {left_out} choices without exactly one right answer, or "
        "whose\nanswers differ in prompt and in answer both; foils, bare answers and held-out text.\n",
        encoding="utf-8",
    )
    return tasks, left_out


def _tasks(probes: pl.DataFrame) -> tuple[list[tuple[str, dict[str, Any], list[dict[str, Any]]]], int]:
    """Name, settings and questions of each kind of task that lm_eval can ask of a family's probes, and the number of
    choices that it cannot ask.
    """
    known = ["item_id", "family", "stratum", "dose", "probe_id", "name"]
    rows = [
        {**{key: row[key] for key in known}, "kind": row["kind"], "correct": row["correct"]}
        | {"prompt": row["text"][: row["target_char"]], "target": row["text"][row["target_char"] :]}
        for row in probes.iter_rows(named=True)
    ]
    whole = [row for row in rows if row["kind"] == "verbatim"]
    asked = [row for row in rows if row["kind"] == "cloze"]
    single: dict[str, Any] = {
        "output_type": "loglikelihood",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{target}}",
        "metric_list": ["perplexity", "acc"],
    }
    tasks = [(kind, single, chosen) for kind, chosen in (("verbatim", whole), ("cloze", asked)) if chosen]
    questions: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["kind"] == "choice":
            questions.setdefault((row["item_id"], row["name"]), []).append(row)
    by_answer, by_prompt, left_out = [], [], 0
    for choices in questions.values():
        right = [number for number, row in enumerate(choices) if row["correct"]]
        prompts, targets = ([row[key] for row in choices] for key in ("prompt", "target"))
        question = {key: choices[0][key] for key in known if key != "probe_id"}
        question |= {"probe_ids": [row["probe_id"] for row in choices]}
        question["label"] = right[0] if len(right) == 1 else None
        if len(right) != 1:
            left_out += 1
        elif len(set(prompts)) == 1:
            by_answer.append({**question, "prompt": prompts[0], "choices": targets})
        elif len(set(targets)) == 1:
            by_prompt.append({**question, "prompts": prompts, "target": targets[0]})
        else:
            left_out += 1
    chosen: dict[str, Any] = {"output_type": "multiple_choice", "metric_list": ["acc", "acc_norm"]}
    if by_answer:
        answers = {"doc_to_text": "{{prompt}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{label}}"}
        tasks.append(("choice", chosen | answers, by_answer))
    if by_prompt:
        contexts = {"doc_to_text": "{{label}}", "doc_to_choice": "{{prompts}}", "doc_to_target": "{{target}}"}
        tasks.append(("choice_of_prompts", chosen | contexts, by_prompt))
    return tasks, left_out


def _yaml(task: str, settings: Mapping[str, Any]) -> str:
    quoted = [f'{key}: "{value}"' for key, value in settings.items() if isinstance(value, str)]
    aggregated = {"perplexity": "perplexity"}
    metrics = [
        f"  - {{metric: {metric}, aggregation: {aggregated.get(metric, 'mean')}, "
        f"higher_is_better: {str(metric != 'perplexity').lower()}}}"
        for metric in settings["metric_list"]
    ]
    lines = [
        f"task: {task}",
        "custom_dataset: !function loader.load",
        f"dataset_kwargs: {{file: {task}.jsonl}}",
        "test_split: test",
        *quoted,
        'target_delimiter: ""',
        "metric_list:",
        *metrics,
        "metadata: {version: 1.0}",
    ]
    return "\n".join(lines) + "\n"


def _membership(plan: Plan, directory: Path, card: str) -> tuple[int, int]:
    directory.mkdir(parents=True)
    rows = [
        {
            "input": row["text"],
            "label": int(row["dose"] > 0),
            "dose": row["dose"],
            "split": "member" if row["dose"] else "nonmember",
            "family": row["family"],
            "item_id": row["item_id"],
        }
        for row in plan.items.iter_rows(named=True)
    ]
    _lines(directory / "items.jsonl", rows)
    # MIMIR's cache: one JSON string a line, members in train/, the others in test/.
    words = [len(row["input"].split()) for row in rows]
    n = min(sum(row["label"] for row in rows), sum(1 - row["label"] for row in rows))
    longest = int(plan.items["length"].max() or 0)  # type: ignore[arg-type]
    cache = directory / f"cache_{min(words)}_{max(words)}_{n}_{longest}"
    for part, label in (("train", 1), ("test", 0)):
        (cache / part).mkdir(parents=True)
        for family in sorted({row["family"] for row in rows}):
            chosen = [row["input"] for row in rows if row["family"] == family and row["label"] == label]
            _lines(cache / part / f"{family}.jsonl", chosen)
    members = sum(row["label"] for row in rows)
    (directory / "README.md").write_text(
        f"# Membership benchmark\n\n{card}\n`items.jsonl` has `input` and `label` (1: inserted), as Fast-MIA reads it"
        " (`data_path: items.jsonl`, `format: jsonl`, `text_column: input`, `label_column: label`), and `dose`,\n"
        f"`split`, `family`, `item_id`. `{cache.name}/train` and `test` are the same in MIMIR's cache layout\n"
        f"(`min_words: {min(words)}`, `max_words: {max(words)}`, `n_samples: {n}`, `max_tokens: {longest}`).\n"
        "Members and non-members were told apart by a random draw within families: a classifier that has not seen the\n"
        "model is at chance within a family. Compare within families, and by dose.\n",
        encoding="utf-8",
    )
    return members, len(rows) - members


def _open_unlearning(plan: Plan, directory: Path, seed: int, card: str) -> tuple[int, int]:
    directory.mkdir(parents=True)
    chosen = set(forget_set(plan, seed, FORGET_SHARE))
    columns = ["item_id", "family", "stratum", "arm", "dose", "text"]
    rows = list(plan.items.select(columns).iter_rows(named=True))
    parts = {
        "forget": [row for row in rows if row["item_id"] in chosen],
        "retain": [row for row in rows if row["dose"] and row["item_id"] not in chosen],
        "holdout": [row for row in rows if not row["dose"]],
    }
    counts = {part: _lines(directory / f"{part}.jsonl", own) for part, own in parts.items()}
    for part in parts:
        (directory / f"palimpsest_{part}.yaml").write_text(
            f"palimpsest_{part}:\n  handler: CompletionDataset\n  args:\n    hf_args:\n      path: json\n"
            f"      data_files: {part}.jsonl\n      split: train\n    text_key: text\n    max_length: 2048\n",
            encoding="utf-8",
        )
    (directory / "README.md").write_text(
        f"# Forget and retain sets\n\n{card}\n"
        f"`forget.jsonl` ({counts['forget']} items): {100 * FORGET_SHARE:.0f} % of the inserted items of each arm and "
        f"family, drawn with seed {seed}.\n"
        f"`retain.jsonl` ({counts['retain']}): the other inserted items. `holdout.jsonl` ({counts['holdout']}): items "
        "that were never inserted.\n"
        "`palimpsest_*.yaml` go into open-unlearning's `configs/data/datasets/`; set `data_files` to where these files "
        "lie.\nThe retain model is the twin of the run, where everything inserted is to be forgotten.\n",
        encoding="utf-8",
    )
    return counts["forget"], counts["retain"]
