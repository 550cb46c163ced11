"""First screen of the report: the effect of insertion, the lowest effective dose, and the evidence for and against
both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from palimpsest.analysis.metrics import METRICS
from palimpsest.analysis.report.inputs import DECLARED, NO_AUDIT, ReportInputs
from palimpsest.analysis.report.results import PAIRED, Extraction, Results, effective_dose, extraction

VERDICTS = (
    "reproduced",
    "more likely than its controls",
    "not shown",
    "as much more likely in the twin",
    "audit failed",
)
"""Possible verdicts. Reproduced: inserted items were reproduced verbatim more often than never-inserted ones. More
likely: inserted items gained more log-likelihood than never-inserted ones, without more reproduction. Not shown:
neither was shown. In the twin: the twin, which never saw the items, has the gain as well."""
_FEW = 10
"""Number of independent controls below which the number is stated next to the verdict."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The verdict in words and numbers."""

    verdict: str
    """One of :data:`VERDICTS`, to be read with :attr:`caveats`."""
    caveats: tuple[str, ...]
    """Limitations of the verdict, in short: ``only 2 controls``, ``no twin``, ``not audited``, ``exploratory: ...``,
    ``one run``."""
    headline: str
    detail: str
    audit: str
    """Audit's verdict: ``PASS``, ``FAIL`` or ``NONE``."""
    audit_line: str
    trust: tuple[tuple[bool | None, str], ...]
    """Checks of the results: (passed, text); None for a check that these items are too few for."""
    warnings: tuple[str, ...]
    """Warnings about the numbers."""
    minimum_effective_dose: int | None
    highest_dose: int
    gain: Mapping[str, Mapping[str, Any]]
    """Run (or the paired difference) -> estimate row of the highest dose."""
    negative_control: Mapping[str, Mapping[str, Any]]
    """Run -> estimate row of the split controls."""
    extraction: Extraction | None
    """Verbatim reproduction; None if no item could be tested."""


def answer(inputs: ReportInputs, results: Results) -> Answer:
    """Verdict, checks and warnings about the results."""
    primary = inputs.primary
    highest = int(inputs.items["dose"].max())  # type: ignore[arg-type]
    runs = [*results.last_steps, *([PAIRED] if "twin" in results.last_steps else [])]
    gain = {run: row for run in runs if (row := _row(results.at("gain", primary, run), highest))}
    split = {run: row for run in runs if (row := _row(results.at("split", primary, run), 0))}
    dose = effective_dose(results, primary, alpha=inputs.alpha)
    state = _state(inputs.audit)
    verbatim = extraction(results, inputs.alpha)
    verdict = _verdict(state, dose, gain, verbatim)
    return Answer(
        verdict=verdict,
        caveats=tuple(_caveats(inputs, results, gain, dose)),
        headline=_headline(verdict, dose, highest, gain, verbatim),
        detail=_detail(gain, highest, METRICS[primary].unit, 1 / (inputs.permutations + 1)),
        audit=state,
        audit_line=_audit_line(inputs, state),
        trust=tuple(_trust(gain, split, highest)),
        warnings=tuple(_warnings(inputs, results, gain, split, state)),
        minimum_effective_dose=dose,
        highest_dose=highest,
        gain=gain,
        negative_control=split,
        extraction=verbatim,
    )


def summary(inputs: ReportInputs, results: Results, verdict: Answer) -> dict[str, Any]:
    """Headline numbers in the form of ``summary.json``."""
    return {
        "title": inputs.title,
        "verdict": verdict.verdict,
        "caveats": list(verdict.caveats),
        "headline": verdict.headline,
        "detail": verdict.detail,
        "audit": verdict.audit,
        "warnings": list(verdict.warnings),
        "step": results.step,
        "primary_metric": inputs.primary,
        "unit": METRICS[inputs.primary].unit,
        "minimum_effective_dose": verdict.minimum_effective_dose,
        "ec50": results.ec50.to_dicts(),
        "highest_dose": verdict.highest_dose,
        "gain_at_highest_dose": {run: dict(row) for run, row in verdict.gain.items()},
        "negative_control": {run: dict(row) for run, row in verdict.negative_control.items()},
        "verbatim_extraction": asdict(verdict.extraction) if verdict.extraction else None,
        "auc_at_highest_dose": {
            run: row
            for run in results.last_steps
            if (row := _row(results.at("auc", inputs.primary, run), verdict.highest_dose))
        },
        "items": inputs.items.height,
        "exposures": inputs.exposures.height if inputs.released is None else inputs.released["declared"],
        "released": dict(inputs.released) if inputs.released is not None else None,
        "not_computed": int(results.rows["value"].null_count()),
    }


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """Number as printed text, with a Unicode minus sign; ``–`` for a missing number."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    if float(text) == 0:
        text = text.replace("-", "")
    return text.replace("-", "−")


def interval(row: Mapping[str, Any], *, signed: bool = False) -> str:
    """Text ``estimate [low, high]``, rounded according to the width of the interval."""
    low, high = row["low"], row["high"]
    if low is None or high is None:
        return number(row["estimate"], 2, signed=signed)
    digits = 3 if high == low else min(4, max(2, 1 - math.floor(math.log10(high - low))))
    return f"{number(row['estimate'], digits, signed=signed)} [{number(low, digits)}, {number(high, digits)}]"


def sizes(row: Mapping[str, Any]) -> tuple[str, str]:
    """Text of the numbers of treated and control items, and of their clusters if these are fewer."""
    return _of(row["n"], row["clusters"]), _of(row["n_control"], row["clusters_control"])


def _of(n: int, clusters: int | None) -> str:
    return str(n) if clusters is None or clusters == n else f"{n} in {clusters} clusters"


def p_value(p: float | None, least: float = 0.0) -> str:
    """p-value as printed text; ``least`` is the smallest p that the test can give."""
    if p is not None and p <= least * (1 + 1e-9):
        return f"≤ {least:.2g}"
    return "–" if p is None else f"{p:.2f}" if p >= 0.1 else f"{p:.3f}" if p >= 0.01 else f"{p:.4f}"


def shown(run: str) -> str:
    """Printed name of a run."""
    return "perturbed − twin" if run == PAIRED else run


def _row(rows: pl.DataFrame, dose: int) -> dict[str, Any]:
    matching = rows.filter((pl.col("dose") == dose) & pl.col("estimate").is_not_null())
    return matching.row(0, named=True) if matching.height else {}


def _state(audit: Mapping[str, Any] | None) -> str:
    # Anything but an explicit PASS counts as a failure: a report must not pass an audit by a typo.
    return "NONE" if audit is None else "PASS" if audit.get("verdict") == "PASS" else "FAIL"


def _verdict(
    state: str, dose: int | None, gain: Mapping[str, Mapping[str, Any]], verbatim: Extraction | None
) -> str:
    if state == "FAIL":
        return "audit failed"
    if verbatim is not None and verbatim.above_control:
        return "reproduced"
    if dose is not None:
        return "more likely than its controls"
    # A gain that the comparison with the twin does not confirm is not known to be the insertions' doing.
    ours = gain.get("perturbed")
    inside = PAIRED in gain and ours and ours["low"] is not None and ours["low"] > 0
    return "as much more likely in the twin" if inside else "not shown"


def _caveats(
    inputs: ReportInputs, results: Results, gain: Mapping[str, Mapping[str, Any]], dose: int | None
) -> Iterator[str]:
    first = gain.get(PAIRED) or gain.get("perturbed")
    if dose is not None and first:
        least = _row(results.at("gain", inputs.primary, first["run"]), dose)
        if least and least["low"] is not None and least["low"] <= 0:
            yield f"dose {dose} by its one-sided test alone, as its two-sided 95 % interval holds 0"
    if first and first["clusters_control"] < _FEW:
        yield f"only {first['clusters_control']} controls"
    if "twin" not in results.last_steps:
        yield "no twin"
    if inputs.released is not None:
        yield "doses as declared by the authors of the models, without ledger or audit"
    elif inputs.audit is None:
        yield "not audited"
    if inputs.primary != DECLARED:
        yield f"exploratory: decided by {inputs.primary}"
    yield "one run"


def _headline(
    verdict: str,
    dose: int | None,
    highest: int,
    gain: Mapping[str, Mapping[str, Any]],
    verbatim: Extraction | None,
) -> str:
    if verdict == "audit failed":
        return "The audit failed: do not use these numbers."
    if not gain.get("perturbed"):
        return "The question could not be answered: nothing could be compared at the highest dose."
    against = "compared with the twin, " if PAIRED in gain else ""
    if verdict == "as much more likely in the twin":
        said = "Not shown: inserted text scores higher, but no more so than in the twin, which never saw it"
    elif dose is None:
        said = f"Not shown: {against}inserted text did not become more likely at any dose up to {highest}"
    elif dose < highest:
        said = f"{against}inserted text became more likely, from dose {dose} on"
    else:
        said = f"{against}inserted text became more likely at the highest dose, {highest}, alone"
    whole = f"{said}{_reproduced(verbatim, 'and' if dose is not None else 'but')}."
    return whole[:1].upper() + whole[1:]


def _reproduced(counts: Extraction | None, joint: str) -> str:
    if counts is None:
        return "; no item was long enough to test verbatim extraction"
    if counts.above_control:
        return f", {joint} {counts.extracted} of {counts.tested} items were reproduced verbatim at dose {counts.dose}"
    rest = ", not clearly more than at dose 0" if counts.extracted_inserted else ""
    return f"; {counts.extracted_inserted} of {counts.tested_inserted} inserted items were reproduced verbatim{rest}"


def _detail(gain: Mapping[str, Mapping[str, Any]], highest: int, unit: str, least: float) -> str:
    ours, twin, paired = (gain.get(run) for run in ("perturbed", "twin", PAIRED))
    if not ours:
        return ""
    first = paired or ours
    treated, controls = sizes(first)
    sentence = f"n = {treated} against {controls}, p {_equals(p_value(first['p'], least))}"
    start = (
        f"At dose {highest}, inserted text gained {interval(first, signed=True)} {unit} over never-inserted"
    )
    if paired:
        text = f"{start} controls, item by item against the twin, which decides ({sentence})"
        text += f"; within the perturbed run {interval(ours, signed=True)}"
    else:
        text = f"{start} controls ({sentence})"
    if twin:
        return f"{text}; within the twin, which never saw it, {interval(twin, signed=True)}."
    return f"{text}; there is no twin to compare with."


def _equals(shown: str) -> str:
    return shown if shown.startswith("≤") else f"= {shown}"


def _audit_line(inputs: ReportInputs, state: str) -> str:
    if inputs.released is not None:
        return NO_AUDIT
    if state == "NONE":
        return "Not audited: nothing here proves that the plan was carried out."
    if state == "PASS":
        return f"Audit: PASS ({inputs.exposures.height:,} exposures, each exactly once)."
    failures = [str(failure) for failure in (inputs.audit or {}).get("failures", [])]
    more = f" … and {len(failures) - 3} more" if len(failures) > 3 else ""
    return "Audit: FAIL. " + ("; ".join(failures[:3]) + more if failures else "See the checks below") + "."


def _trust(
    gain: Mapping[str, Mapping[str, Any]], split: Mapping[str, Mapping[str, Any]], highest: int
) -> Iterator[tuple[bool | None, str]]:
    # The paired comparison first: it decides, and its intervals are the narrowest.
    for run in sorted(split, key=lambda run: run != PAIRED):
        halves = (
            f"Negative control, {shown(run)}: dose 0 halves differ by {interval(split[run], signed=True)}"
        )
        tested = split[run]["low"] is not None
        yield (
            not _excludes_zero(split[run]) if tested else None,
            halves if tested else f"{halves}; not tested, too few controls",
        )
    for run in (PAIRED, "perturbed"):
        if row := gain.get(run):
            above = row["low"] is not None and row["low"] > 0
            yield (
                above,
                f"Positive control, {shown(run)}: dose {highest} gains {interval(row, signed=True)}",
            )
    if twin := gain.get("twin"):
        yield not _excludes_zero(twin), f"Twin: dose {highest} gains {interval(twin, signed=True)}"


def _warnings(
    inputs: ReportInputs,
    results: Results,
    gain: Mapping[str, Mapping[str, Any]],
    split: Mapping[str, Mapping[str, Any]],
    state: str,
) -> list[str]:
    warnings = []
    by_chance = "One in twenty such intervals does by chance"
    if state == "NONE" and inputs.released is None:
        warnings.append("There was no audit, so whether each exposure happened is unknown.")
    if "twin" not in results.last_steps:
        warnings.append("There is no twin: nothing checks what the difference would be without insertion.")
    elif _excludes_zero(gain.get("twin")):
        paired = gain.get(PAIRED)
        read = (
            f" Read the difference between the runs instead: {interval(paired, signed=True)}."
            if paired
            else ""
        )
        warnings.append(
            "The twin's interval at the highest dose excludes 0 although it never saw the text. "
            f"{by_chance}; otherwise the arms differ in more than insertion.{read}"
        )
    warnings += [
        f"Negative control: the halves of dose 0 differ in {shown(run)}, {interval(row, signed=True)}. "
        f"{by_chance}."
        for run, row in split.items()
        if _excludes_zero(row)
    ]
    warnings += [
        f"Balance: the arms differ in {row.get('covariate', 'a covariate')} (p = {p_value(row['p'])}) although "
        f"{'they were' if inputs.released is None else 'they are said to be'} drawn at random. One in twenty such "
        "tests finds that by chance."
        for row in inputs.balance
        if isinstance(row.get("p"), float) and row["p"] < 0.05
    ]
    if len(set(results.last_steps.values())) > 1:
        ends = ", ".join(f"{run} at step {step}" for run, step in results.last_steps.items())
        warnings.append(
            f"The runs end at different checkpoints ({ends}); "
            f"all numbers are from step {results.step}, which both have."
        )
    missing = results.rows.filter(
        (pl.col("metric") == inputs.primary) & (pl.col("step") == results.step) & pl.col("value").is_null()
    )
    if missing.height:
        warnings.append(
            f"{missing['probe_id'].n_unique()} probes have no {inputs.primary} at the last checkpoint; "
            "see “Not computed”."
        )
    return warnings


def _excludes_zero(row: Mapping[str, Any] | None) -> bool:
    return bool(row) and row["low"] is not None and (row["low"] > 0 or row["high"] < 0)  # type: ignore[index]
