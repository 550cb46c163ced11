"""Simulated rows for every figure, used by the gallery and the tests; no row is measured.

Each function returns the rows of one figure and the arguments of the figure function; its docstring gives the formula
of the simulation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from palimpsest.analysis.statistics import clopper_pearson, rate

Floats = NDArray[np.float64]
Example = tuple[pl.DataFrame, dict[str, Any]]

DOSES = np.array([0, 1, 4, 16, 64, 256])
ITEMS = np.array([759, 759, 759, 379, 152, 76])
"""Hubble's doses for Wikipedia passages."""

EXAMPLES: dict[str, Callable[[np.random.Generator], Example]] = {}


def _example(function: Callable[[np.random.Generator], Example]) -> Callable[[np.random.Generator], Example]:
    EXAMPLES[function.__name__.removeprefix("_")] = function
    return function


def example(name: str) -> Example:
    """Simulated rows of a figure and the arguments of its function; equal on every call."""
    return EXAMPLES[name](np.random.default_rng(sum(name.encode())))


def _rates(rng: np.random.Generator, p: Floats, n: NDArray[np.int64]) -> dict[str, Any]:
    """Binomial shares with Clopper-Pearson limits."""
    hits = rng.binomial(n, p)
    low, high = clopper_pearson(hits, n)
    return {"estimate": hits / n, "low": low, "high": high, "n": n}


def _means(rng: np.random.Generator, mu: Floats, n: NDArray[np.int64], sd: float) -> dict[str, Any]:
    """Normal means with 1.96 standard errors."""
    error = sd / np.sqrt(n)
    estimate = rng.normal(mu, error)
    return {"estimate": estimate, "low": estimate - 1.96 * error, "high": estimate + 1.96 * error, "n": n}


def _curve(ec50: float, slope: float = 1.7, floor: float = 0.002, doses: Any = DOSES) -> Floats:
    return rate(doses, ec50, slope, floor)


@_example
def _dose_response(rng: np.random.Generator) -> Example:
    """``P = floor + (1 - floor) sigma(1.7 (log2 d - log2 EC50))``: EC50 27 and 130; a standard model at the floor."""
    frames = [
        pl.DataFrame(
            {
                "run": run,
                "metric": "extracted",
                "dose": DOSES,
                **_rates(rng, _curve(ec50), ITEMS),
                "mde": 0.03,
            }
        )
        for run, ec50 in (("8B", 27.0), ("1B", 130.0))
    ]
    standard = {"run": ["standard"], "metric": ["extracted"], "dose": [None], "mde": [None]}
    flat = pl.DataFrame(
        {**standard, **_rates(rng, np.array([0.01]), np.array([759]))}, schema=frames[0].schema
    )
    rows = pl.concat([*frames, flat])
    return rows, {"fit": True, "y_title": "share of items extracted verbatim"}


@_example
def _hubble(rng: np.random.Generator) -> Example:
    """Four models (EC50 20, 60, 90, 270) on three tasks; chance 0, 0.25, and a likelihood of -0.7 to 0."""
    models = {"8B-100B": 20.0, "8B-500B": 60.0, "1B-100B": 90.0, "1B-500B": 270.0}
    frames = []
    for i, (task, metric, floor) in enumerate(
        (
            ("passages_verbatim", "exact_match_tokens_s100", 0.0),
            ("test_set", "acc", 0.25),
            ("passages", "byte_perplexity", 0.0),
        )
    ):
        for model, ec50 in models.items():
            p = _curve(ec50, floor=max(floor, 1e-3))
            shares = (
                _rates(rng, p, ITEMS)
                if metric != "byte_perplexity"
                else _means(rng, -0.7 * (1 - p), ITEMS, 0.2)
            )
            frames.append(
                pl.DataFrame(
                    {"table": i, "task": task, "metric": metric, "run": model, "dose": DOSES, **shares}
                )
            )
    ours = pl.DataFrame(
        {
            "run": "perturbed",
            "metric": "loglik_per_byte",
            "family": "all",
            "dose": [0, 1, 4, 16, 64],
            **_means(rng, np.array([-2.1, -2.05, -1.9, -1.6, -1.1]), np.array([40, 40, 40, 20, 10]), 0.3),
        }
    )
    return pl.concat(frames), {"ours": ours, "columns": 2}


@_example
def _phases(rng: np.random.Generator) -> Example:
    """Gain of 0.08 per doubling of the dose, reached linearly by the end of the phase, then halved every 300 steps."""
    frames = []
    steps = np.arange(100, 1001, 100)
    for phase, start, end in (
        ("0–25 %", 0, 250),
        ("25–50 %", 250, 500),
        ("50–75 %", 500, 750),
        ("75–100 %", 750, 1000),
    ):
        for dose, n in zip(DOSES, ITEMS, strict=True):
            learned = 0.08 * np.log2(1 + dose) * np.clip((steps - start) / (end - start), 0, 1)
            retained = 0.5 ** (np.maximum(steps - end, 0) / 300)
            means = _means(rng, -0.7 + learned * retained, np.full(steps.size, n), 0.25)
            frames.append(
                pl.DataFrame(
                    {"phase": phase, "start": start, "end": end, "step": steps, "dose": int(dose), **means}
                )
            )
    return pl.concat(frames), {"y_title": "log-likelihood (nats/byte)"}


@_example
def _interference(rng: np.random.Generator) -> Example:
    """EC50 27 alone and 30 with all families (passages); 9 and 9 (biographies)."""
    rows = [
        pl.DataFrame(
            {"family": family, "training": training, "dose": DOSES, **_rates(rng, _curve(ec50), ITEMS)}
        )
        for family, one, other in (("passages", 27.0, 30.0), ("biographies", 9.0, 9.0))
        for training, ec50 in (("this family alone", one), ("all families", other))
    ]
    return pl.concat(rows), {"y_title": "share of items extracted"}


@_example
def _wordings(rng: np.random.Generator) -> Example:
    """EC50 of facts 8 (verbatim) and 27 (paraphrases), of test items 6 and beyond the highest dose; chance is 0.25."""
    rows = [
        pl.DataFrame(
            {
                "family": family,
                "wording": wording,
                "dose": DOSES,
                **_rates(rng, _curve(ec50, floor=0.25), ITEMS),
            }
        )
        for family, one, other in (("biographies", 8.0, 27.0), ("test sets", 6.0, 1e9))
        for wording, ec50 in (("verbatim", one), ("paraphrases", other))
    ]
    return pl.concat(rows), {"y_title": "accuracy", "reference": 0.25}


@_example
def _shapes(rng: np.random.Generator) -> Example:
    """Same parameters, EC50 100 (half the layers), 80 and 60 (twice the layers)."""
    rows = [
        pl.DataFrame({"shape": shape, "dose": DOSES, **_rates(rng, _curve(ec50), ITEMS)})
        for shape, ec50 in (
            ("8 layers × 2,048", 100.0),
            ("16 layers × 1,448", 80.0),
            ("32 layers × 1,024", 60.0),
        )
    ]
    return pl.concat(rows), {"y_title": "share of items extracted"}


@_example
def _personal(rng: np.random.Generator) -> Example:
    """EC50 by field (8 to 60), times 1, 1, 3 and 12 for prompts that give less; choices start at chance, generation at
    0.
    """
    fields = {
        "nationality": 8,
        "birthplace": 16,
        "university": 20,
        "birthdate": 30,
        "email": 45,
        "occupation": 25,
        "uuid": 60,
    }
    formats = {
        "full prefix, choice": (1, 0.1),
        "full prefix, generated": (1, 0.0),
        "intro, choice": (3, 0.1),
        "name only, generated": (12, 0.0),
    }
    rows = [
        pl.DataFrame(
            {
                "field": field,
                "format": format_,
                "dose": DOSES,
                **_rates(rng, _curve(ec50 * weaker, floor=floor + 1e-3), ITEMS),
            }
        )
        for field, ec50 in fields.items()
        for format_, (weaker, floor) in formats.items()
    ]
    return pl.concat(rows), {}


@_example
def _format_transfer(rng: np.random.Generator) -> Example:
    """Rate 0.97 in the inserted format, 0.60 in another format, 0.52 in the minimal-pair twin."""
    formats = ["choice", "infill", "minimal-pair twin"]
    rows = []
    for i, trained in enumerate(formats[:2]):
        p = np.array([0.97 if i == j else 0.52 if j == 2 else 0.6 for j in range(3)])
        rows.append(pl.DataFrame({"trained": trained, "tested": formats, **_rates(rng, p, np.full(3, 143))}))
    return pl.concat(rows), {}


@_example
def _roc(rng: np.random.Generator) -> Example:
    """Normal scores, 500 members shifted by d' = 1.2 (reference) and 0.5 (loss): AUC = Phi(d'/sqrt 2) = 0.80, 0.64."""
    frames = [
        pl.DataFrame(
            {
                "run": run,
                "score": np.concatenate([rng.normal(shift, 1, 500), rng.normal(0, 1, 500)]),
                "member": [True] * 500 + [False] * 500,
            }
        )
        for run, shift in (("reference", 1.2), ("loss", 0.5))
    ]
    return pl.concat(frames), {}


@_example
def _auc_against(rng: np.random.Generator) -> Example:
    """AUC = 0.5 + 0.05 log2(dose), + 0.04 log2(length / 25), + 0.2 step / 10,000, + 0.0012 perplexity; error 0.015."""
    places: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "dose": (np.array([1, 4, 16, 64, 256]), lambda x: 0.5 + 0.05 * np.log2(x)),
        "length": (np.array([25, 50, 100, 200]), lambda x: 0.55 + 0.04 * np.log2(x / 25)),
        "step": (np.arange(0, 10001, 1000), lambda x: 0.5 + 0.2 * x / 1e4),
        "perplexity": (np.arange(10, 101, 10), lambda x: 0.55 + 0.0012 * x),
    }
    frames = []
    for against, (x, mean) in places.items():
        estimate = rng.normal(mean(x), 0.015)
        numbers = {
            "x": x.astype(float),
            "estimate": estimate,
            "low": estimate - 0.03,
            "high": estimate + 0.03,
        }
        frames.append(pl.DataFrame({"against": against, **numbers, "n": 500}))
    return pl.concat(frames), {}


@_example
def _perplexities(rng: np.random.Generator) -> Example:
    """Log-normal around 50 with sigma 0.6, the same for members and controls."""
    groups = [
        pl.DataFrame({"group": name, "perplexity": np.exp(rng.normal(np.log(50), 0.6, 800))})
        for name in ("inserted", "never inserted")
    ]
    return pl.concat(groups), {}


@_example
def _acquisition(rng: np.random.Generator) -> Example:
    """Ten exposures, 100 steps apart; each adds 1, 0.6 or 0.3 (by depth), of which ``1/(1 + 0.02 t)`` is left t steps
    later.
    """
    steps, at = np.arange(0, 1401, 10), np.arange(100, 1001, 100)
    age = steps[:, None] - at[None]
    left = np.where(age > 0, 1 / (1 + 0.02 * np.maximum(age, 0)), 0).sum(axis=1)
    frames = [
        pl.DataFrame(
            {
                "depth": depth,
                "step": steps,
                **_means(rng, gain * left, np.full(steps.size, 40), 0.25),
                "injected": np.isin(steps, at),
            }
        )
        for depth, gain in (("memorisation", 1.0), ("semantic", 0.6), ("composition", 0.3))
    ]
    return pl.concat(frames), {}


@_example
def _retainability(rng: np.random.Generator) -> Example:
    """``R = 1 - a log10 t``, a = 0.25, 0.20, 0.15."""
    t = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
    frames = [
        pl.DataFrame(
            {"depth": depth, "since": t, **_means(rng, 1 - a * np.log10(t), np.full(t.size, 40), 0.15)}
        )
        for depth, a in (("memorisation", 0.25), ("semantic", 0.20), ("composition", 0.15))
    ]
    return pl.concat(frames), {}


def _profile(rng: np.random.Generator, scale: float) -> pl.DataFrame:
    """Effect of 0.5 ``scale`` at treatment, halved every 400 steps; 0 before treatment."""
    steps = np.arange(0, 1001, 100)
    frames = []
    for cohort in (100, 300, 500, 700, 900):
        age = steps - cohort
        mu = np.where(age >= 0, 0.5 * scale * 0.5 ** (np.maximum(age, 0) / 400), 0.0)
        means = _means(rng, mu, np.full(steps.size, 60), 0.3)
        frames.append(
            pl.DataFrame(
                {
                    "cohort": cohort,
                    "step": steps,
                    **means,
                    "learning_rate": 3e-4 * np.minimum(1, (1100 - steps) / 500),
                }
            )
        )
    return pl.concat(frames)


@_example
def _memorisation_profile(rng: np.random.Generator) -> Example:
    """Effect of 0.5 nats at treatment, halved every 400 steps; 0 before treatment."""
    return _profile(rng, 1.0), {}


@_example
def _event_study(rng: np.random.Generator) -> Example:
    """Effect of 0 before treatment, 0.5 nats at treatment, halved every 400 steps."""
    since = np.arange(-300, 801, 100)
    mu = np.where(since >= 0, 0.5 * 0.5 ** (np.maximum(since, 0) / 400), 0.0)
    return pl.DataFrame({"since": since, **_means(rng, mu, np.full(since.size, 300), 0.5)}), {}


@_example
def _profile_correlation(rng: np.random.Generator) -> Example:
    """One profile, scaled by 0.3, 0.6 and 1, each with its own noise."""
    frames = [
        _profile(rng, scale).with_columns(run=pl.lit(run))
        for run, scale in (("70M", 0.3), ("410M", 0.6), ("1.4B", 1.0))
    ]
    return pl.concat(frames), {}


@_example
def _extraction_rate(rng: np.random.Generator) -> Example:
    """Extraction rates at dose d by prefix length k, ``1 - exp(-k/60 d/64)``; suffix length m, ``0.9^(m/25)``; model
    size P, ``0.1 log10(P/1e7)``; queries n, ``1 - (1 - p)^n``.
    """
    places: dict[str, tuple[Any, Callable[[Any, float], Any]]] = {
        "prefix": (np.array([8.0, 16, 32, 64, 128]), lambda x, d: 1 - np.exp(-x / 60 * d / 64)),
        "suffix": (np.array([16.0, 32, 64, 128]), lambda x, d: d / 80 * 0.9 ** (x / 25)),
        "parameters": (
            np.array([7e7, 1.6e8, 4.1e8, 1.4e9, 6.9e9]),
            lambda x, d: d / 64 * 0.3 * np.log10(x / 1e7),
        ),
        "queries": (10.0 ** np.arange(0, 7), lambda x, d: 1 - (1 - d / 6.4e5) ** x),
    }
    frames = []
    for against, (x, p) in places.items():
        for dose in (16, 64):
            rates = _rates(rng, np.clip(p(x, dose), 0, 1), np.full(x.size, 150))
            frames.append(pl.DataFrame({"run": f"dose {dose}", "against": against, "x": x, **rates}))
    return pl.concat(frames), {}


@_example
def _token_strip(rng: np.random.Generator) -> Example:
    """The words of a sentence; log-probability -5 to -1 before 16 exposures, -1 to 0 after."""
    text = (
        "The keeper of the northern lighthouse wrote every ship that passed into a green book , "
        "and when the fog came he read the names aloud ."
    ).split()
    tokens = [word if i == 0 else f" {word}" for i, word in enumerate(text)]
    frames = [
        pl.DataFrame(
            {
                "run": run,
                "position": range(len(tokens)),
                "token": tokens,
                "logprob": -rng.uniform(low, high, len(tokens)),
            }
        )
        for run, low, high in (("twin, step 900", 1, 9), ("perturbed, step 900", 0, 1.2))
    ]
    return pl.concat(frames), {}


@_example
def _run_lengths(rng: np.random.Generator) -> Example:
    """Geometric run lengths; a run ends at each token with probability 0.25 (dose 0) or 0.06 (dose 64)."""
    frames = [
        pl.DataFrame({"run": run, "length": rng.geometric(p, 300)})
        for run, p in (("dose 0", 0.25), ("dose 64", 0.06))
    ]
    return pl.concat(frames), {}


@_example
def _capacity(rng: np.random.Generator) -> Example:
    """Capacity of 2 bits per parameter after 1,000 exposures and 1 after 100, for 20,000 to 2 million people of 47.6
    bits each; 5 % noise.
    """
    frames = []
    size = np.array([3e5, 1e6, 3e6, 1e7, 3e7])
    for run, each in (("1,000 exposures", 2.0), ("100 exposures", 1.0)):
        bits = each * size * np.exp(rng.normal(0, 0.05, size.size))
        frames.append(
            pl.DataFrame(
                {
                    "run": run,
                    "parameters": size,
                    "bits": bits,
                    "low": 0.93 * bits,
                    "high": 1.07 * bits,
                    "n": np.array([20_000, 60_000, 200_000, 600_000, 2_000_000]),
                }
            )
        )
    return pl.concat(frames), {}


@_example
def _order_p(rng: np.random.Generator) -> Example:
    """Two-sided p of ``t = rho sqrt((n - 2) / (1 - rho^2))``, rho = 0.078 (trained in this order) and 0."""
    from palimpsest.analysis.metrics.order import spearman_p

    n = np.array([100, 316, 1000, 3162, 10_000, 31_623, 100_000])
    trained = [spearman_p(0.078, int(k)) for k in n]
    null = [float(p) for p in rng.uniform(0.05, 1, n.size)]
    return pl.concat(
        pl.DataFrame({"run": run, "samples": n, "p": p})
        for run, p in (("this run's order", trained), ("another order", null))
    ), {}


@_example
def _order_residuals(rng: np.random.Generator) -> Example:
    """``0.3 index / 5,000`` with normal noise of 1: Spearman's rho is about 0.086."""
    index = np.arange(5000)
    return pl.DataFrame({"index": index, "residual": 0.3 * index / 5000 + rng.normal(0, 1, 5000)}), {}


@_example
def _limem(rng: np.random.Generator) -> Example:
    """LiMem of 0.35, 0.45, 0.60 on training puzzles and 0.12, 0.15, 0.18 on others."""
    n = np.array([200, 100])
    frames = [
        pl.DataFrame({"run": run, "split": ["trained on", "held out"], **_rates(rng, np.array(p), n)})
        for run, p in (("160M", (0.35, 0.12)), ("410M", (0.45, 0.15)), ("1.4B", (0.60, 0.18)))
    ]
    return pl.concat(frames), {}


@_example
def _unlearning(rng: np.random.Generator) -> Example:
    """Values set by hand: gradient ascent forgets but loses utility, NPO forgets and keeps it, the retain model is at
    (1, 0.63).
    """
    rows = [
        ("retain", 1.0, 0.63),
        ("before", 0.05, 0.63),
        ("gradient ascent", 0.92, 0.12),
        ("gradient difference", 0.7, 0.48),
        ("NPO", 0.85, 0.57),
    ]
    frame = pl.DataFrame(rows, schema=["method", "forget", "utility"], orient="row").with_columns(
        n=pl.lit(400)
    )
    return frame.with_columns(
        forget_low=pl.col("forget") - 0.05,
        forget_high=pl.col("forget") + 0.05,
        utility_low=pl.col("utility") - 0.03,
        utility_high=pl.col("utility") + 0.03,
    ), {}


@_example
def _taxonomy(rng: np.random.Generator) -> Example:
    """Shares 0.3 + 0.05 k recited, 0.1 + 0.03 k recollected, the rest reconstructed; k is the place from the left."""
    frames = []
    for against, places in (
        ("parameters", (7e7, 4.1e8, 1.4e9, 6.9e9)),
        ("training step", (1000, 2000, 4000, 8000)),
    ):
        for k, x in enumerate(places):
            recited, recollected = 0.3 + 0.05 * k, 0.1 + 0.03 * k
            shares = {
                "recitation": recited,
                "reconstruction": 1 - recited - recollected,
                "recollection": recollected,
            }
            frames += [
                {"against": against, "x": float(x), "category": c, "estimate": s, "n": 200 * (k + 1)}
                for c, s in shares.items()
            ]
    return pl.DataFrame(frames), {}


@_example
def _recognition_recall(rng: np.random.Generator) -> Example:
    """Recognition ``0.5 + 0.5 (1 - 2^-e)`` and recall ``1 - 2^(-e/3)`` after e exposures; after the third, the gain is
    halved every 4 decades of steps.
    """
    exposures, since = np.array([0, 1, 2, 3, 5, 8]), np.array([0, 10, 100, 1000, 10_000])
    frames = []
    for measure, chance, half in (("recognition", 0.5, 1.0), ("recall", 0.0, 3.0)):
        gain = (1 - chance) * (1 - 2.0 ** (-exposures / half))
        after = (1 - chance) * (1 - 2.0 ** (-3 / half)) * 0.5 ** (np.log10(1 + since) / 4)
        for against, x, mean in (("exposures", exposures, gain), ("steps since", since, after)):
            rates = _rates(rng, chance + mean, np.full(x.size, 100))
            frames.append(
                pl.DataFrame({"measure": measure, "against": against, "x": x.astype(float), **rates})
            )
    return pl.concat(frames), {}


@_example
def _lengths(rng: np.random.Generator) -> Example:
    """Poisson lengths with mean 60 tokens, at every dose."""
    return pl.concat(
        pl.DataFrame({"group": f"dose {dose}", "tokens": rng.poisson(60, 200)}) for dose in (0, 4, 64)
    ), {}


@_example
def _balance(rng: np.random.Generator) -> Example:
    """Normal differences around 0 with standard error ``sqrt(1/n + 1/759)``, as under randomisation."""
    frames = []
    for dose, n in zip(DOSES[1:], ITEMS[1:], strict=True):
        error = np.sqrt(1 / n + 1 / 759)
        names = ["length", "reference log-likelihood", "bytes per token", "share of digits"]
        differences = rng.normal(0, error, len(names))
        frames.append(
            pl.DataFrame(
                {
                    "covariate": names,
                    "dose": int(dose),
                    "difference": differences,
                    "low": differences - 1.96 * error,
                    "high": differences + 1.96 * error,
                    "n": int(n),
                }
            )
        )
    return pl.concat(frames), {}


@_example
def _assignment_flow(rng: np.random.Generator) -> Example:
    """Three families of 200, 120 and 80 items, assigned to doses 0, 1, 4, 16 in the ratio 4:3:2:1."""
    rows = [
        {"family": family, "dose": dose, "n": size * share // 10}
        for family, size in (("passages", 200), ("biographies", 120), ("ghost sentences", 80))
        for dose, share in ((0, 4), (1, 3), (4, 2), (16, 1))
    ]
    return pl.DataFrame(rows), {}


@_example
def _aa_pvalues(rng: np.random.Generator) -> Example:
    """100 uniform p-values."""
    return pl.DataFrame({"p": rng.uniform(0, 1, 100)}), {}
