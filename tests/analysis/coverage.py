"""How often the report's intervals hold the truth: simulated experiments, put through the functions of the report.

    python -m tests.analysis.coverage > results/coverage_DATE.md

One simulated experiment is one checkpoint of the rows, so that a few thousand of them are one call. Designs are those
that break intervals: clusters, few items, skewed effects, bounds, ties, families of unequal shares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy.stats import norm

from palimpsest.analysis.metrics.order import order_test, reshuffle_test
from palimpsest.analysis.report.forgetting import retention
from palimpsest.analysis.report.unlearned import FORGET, NEVER, half_back, leaks
from palimpsest.analysis.run.rows import single_exposure
from palimpsest.analysis.statistics import (
    PAIRED,
    auc,
    crossed_gains,
    curve_ec50,
    difference_to_twin,
    forgetting_slope,
    gain_over_control,
    mean_by_dose,
    minimum_effective_dose,
    per_item,
    profile_ec50,
    rate,
    split_controls,
)
from palimpsest.analysis.statistics.power import of_arms

MANY = 2000
"""Experiments of a row: the standard error of a coverage of 95 % is 0.5 %."""


class Row(NamedTuple):
    """Coverage of one kind of interval in one design."""

    interval: str
    design: str
    coverage: float
    below: float
    """Share of intervals that lie below the truth."""


class Design(NamedTuple):
    """Items of one experiment."""

    family: np.ndarray
    stratum: np.ndarray
    dose: np.ndarray
    cluster: np.ndarray
    """Empty string: the item is on its own."""

    def rows(self, value_EN: np.ndarray, run: str = "perturbed") -> pl.DataFrame:
        """Metric rows, an experiment a step."""
        experiments, n = value_EN.shape
        ids = np.char.mod("i%d", np.arange(n))
        return pl.DataFrame(
            {
                "run": run,
                "step": np.repeat(np.arange(experiments), n),
                "probe_id": np.tile(ids, experiments),
                "item_id": np.tile(ids, experiments),
                "family": np.tile(self.family, experiments),
                "stratum": np.tile(self.stratum, experiments),
                "cluster": np.tile(self.cluster, experiments),
                "dose": np.tile(self.dose.astype(np.int32), experiments),
                "metric": "m",
                "value": value_EN.ravel().astype(np.float64),
            },
            schema_overrides={"cluster": pl.String},
        )


def design(
    treated: int, controls: int, *, families: int = 1, strata: int = 1, size: int = 1, dose: int = 4
) -> Design:
    """So many clusters of ``size`` items of either arm in each stratum of each family."""
    cells = [
        (f"f{f}", f"f{f}/s{s}", d, f"f{f}s{s}d{d}c{c}" if size > 1 else "")
        for f in range(families)
        for s in range(strata)
        for d, count in ((0, controls), (dose, treated))
        for c in range(count)
        for _ in range(size)
    ]
    return Design(*(np.array(column) for column in zip(*cells, strict=True)))


def of_clusters(made: Design, values_EC: Callable[[int], np.ndarray]) -> np.ndarray:
    """One value a cluster, laid out over its items."""
    names, code = np.unique(made.cluster, return_inverse=True)
    return values_EC(len(names))[:, code]


def judged(interval: str, what: str, estimates: pl.DataFrame, truth: float | np.ndarray) -> Row:
    """The coverage of estimates of family ``all`` at the highest dose, an experiment a step."""
    rows = estimates.filter((pl.col("family") == "all") & (pl.col("dose") == pl.col("dose").max())).sort(
        "step"
    )
    low, high = rows["low"].to_numpy(), rows["high"].to_numpy()
    return Row(interval, what, float(np.mean((low <= truth) & (truth <= high))), float(np.mean(high < truth)))


SKEWED = {
    "exponential": (lambda rng, shape: rng.exponential(1, shape), 1.0),
    "lognormal, sd 0.5": (lambda rng, shape: rng.lognormal(0, 0.5, shape), float(np.exp(0.125))),
    "lognormal, sd 1": (lambda rng, shape: rng.lognormal(0, 1, shape), float(np.exp(0.5))),
}
"""Effects that items differ in, and their mean."""


def gains(rng: np.random.Generator, many: int = MANY) -> Iterator[Row]:
    """Means and differences without bounds."""

    def noise(made: Design, sd: float = 1.0) -> np.ndarray:
        return rng.normal(0, sd, (many, len(made.dose)))

    for name, made in (
        ("5 v 5", design(5, 5)),
        ("5 v 30", design(5, 30)),
        ("3 families x 2 strata, 5 v 5 each", design(5, 5, families=3, strata=2)),
    ):
        both = made.rows(noise(made) + 0.7 * (made.dose > 0))
        yield judged("gain", f"normal, {name}", gain_over_control(both), 0.7)
        yield judged("mean", f"normal, {name}", mean_by_dose(both), 0.7)
        yield judged("split of the controls", f"normal, {name}", split_controls(both), 0.0)
    made = design(10, 30)
    wide = noise(made) * np.where(made.dose > 0, 3, 1)
    yield judged("gain", "treated vary 3 times as much, 10 v 30", gain_over_control(made.rows(wide)), 0.0)
    tied = np.floor(noise(made))
    yield judged("gain", "ties (whole numbers), 10 v 30", gain_over_control(made.rows(tied)), 0.0)
    for name, (draw, mean) in SKEWED.items():
        for what, made in (
            ("10 v 10", design(10, 10)),
            ("3 families, 10 v 10 each", design(10, 10, families=3)),
        ):
            value = noise(made, 0.5) + np.where(made.dose > 0, draw(rng, (many, len(made.dose))), 0)
            yield judged("gain", f"effect {name}, {what}", gain_over_control(made.rows(value)), mean)
    for what, made in (
        ("6 v 6 clusters of 5", design(6, 6, size=5)),
        ("3 families, 4 v 4 clusters of 5", design(4, 4, families=3, size=5)),
    ):
        value = of_clusters(made, lambda count: rng.normal(0, 1, (many, count))) + noise(made)
        both = made.rows(value + 0.7 * (made.dose > 0))
        yield judged("gain", f"ICC 0.5, {what}", gain_over_control(both), 0.7)
        yield judged("mean", f"ICC 0.5, {what}", mean_by_dose(both), 0.7)
        yield judged("split of the controls", f"ICC 0.5, {what}", split_controls(both), 0.0)
    sizes = np.random.default_rng(0).integers(1, 9, 30)
    cluster = np.repeat(np.arange(30), sizes)
    uneven = Design(
        np.full(cluster.size, "f"),
        np.full(cluster.size, "f/s"),
        4 * (cluster < 15),
        np.char.mod("c%d", cluster),
    )
    value = of_clusters(uneven, lambda count: rng.normal(0, 1, (many, count))) + noise(uneven)
    yield judged("gain", "ICC 0.5, 15 v 15 clusters of 1 to 8", gain_over_control(uneven.rows(value)), 0.0)


SHARE = (0.0, 1.0)


def shares(rng: np.random.Generator, many: int = MANY) -> Iterator[Row]:
    """Rates and other shares."""
    for what, made in (("10 v 10", design(10, 10)), ("3 families, 10 v 10 each", design(10, 10, families=3))):
        # The truth differs from experiment to experiment: at one rate coverage is a saw-tooth in n.
        p0, p1 = rng.uniform(0.05, 0.5, (many, 1)), rng.uniform(0.3, 0.95, (many, 1))
        rate = np.where(made.dose > 0, p1, p0)
        hit = made.rows(rng.random((many, len(made.dose))) < rate)
        yield judged("rate", f"hit or miss, {what}", mean_by_dose(hit, bounds=SHARE), p1[:, 0])
        difference = gain_over_control(hit, bounds=SHARE)
        yield judged("gain of a rate", f"hit or miss, {what}", difference, (p1 - p0)[:, 0])
    # Families of unequal shares and unlike rates, no effect.
    counts = {("a", 0): 5, ("a", 64): 30, ("b", 0): 30, ("b", 64): 5}
    cells = [(f, f, d, "") for (f, d), count in counts.items() for _ in range(count)]
    made = Design(*(np.array(column) for column in zip(*cells, strict=True)))
    hit = made.rows(rng.random((many, len(made.dose))) < np.where(made.family == "a", 0.5, 0.2))
    null = gain_over_control(hit, bounds=SHARE)
    yield judged("gain of a rate", "null, family a 30 v 5, b 5 v 30, rates 0.5 and 0.2", null, 0.0)
    for what, made in (
        ("12 v 12 clusters of 5", design(12, 12, size=5)),
        ("3 families, 6 v 6 clusters of 5", design(6, 6, families=3, size=5)),
    ):
        own = np.where(made.dose > 0, 0.6, 0.3)
        # Beta-binomial: intraclass correlation 1 / (1 + 2) = 0.33.
        names, first = np.unique(made.cluster, return_index=True)
        drawn = rng.beta(2 * own[first], 2 * (1 - own[first]), (many, len(names)))
        p = drawn[:, np.unique(made.cluster, return_inverse=True)[1]]
        hit = made.rows(rng.random(p.shape) < p)
        yield judged("rate", f"ICC 0.33, {what}", mean_by_dose(hit, bounds=SHARE), 0.6)
        yield judged("gain of a rate", f"ICC 0.33, {what}", gain_over_control(hit, bounds=SHARE), 0.3)
    for what, made in (("10 v 10", design(10, 10)), ("30 v 30", design(30, 30))):
        treated = made.dose > 0
        ties = rng.choice([0, 0.5, 1], (many, len(made.dose)), p=[0.3, 0.3, 0.4])
        yield judged(
            "share", f"points shared in ties, {what}", mean_by_dose(made.rows(ties), bounds=SHARE), 0.55
        )
        tokens = rng.beta(np.where(treated, 8, 3), np.where(treated, 4, 12), (many, len(made.dose)))
        found = made.rows(tokens)
        yield judged("share", f"tokens hit, beta(8, 4), {what}", mean_by_dose(found, bounds=SHARE), 8 / 12)
        yield judged(
            "gain of a share", f"tokens hit, {what}", gain_over_control(found, bounds=SHARE), 8 / 12 - 3 / 15
        )
    made = design(10, 10, families=3)
    ours, twin = (
        rng.random((many, len(made.dose))) < np.where((made.dose > 0) & flag, 0.5, 0.15)
        for flag in (True, False)
    )
    paired = made.rows(ours.astype(float) - twin, run=PAIRED)
    yield judged(
        "gain of a rate",
        "hit or miss less the twin's, 3 families",
        gain_over_control(paired, bounds=SHARE),
        0.35,
    )


def areas(rng: np.random.Generator, many: int = MANY) -> Iterator[Row]:
    """AUC."""
    from scipy import stats

    for what, made in (
        ("10 v 10", design(10, 10)),
        ("3 families, 5 v 5 each", design(5, 5, families=3)),
        ("3 families, 10 v 10 each", design(10, 10, families=3)),
    ):
        # Areas of so few pairs are steps: coverage comes close to the bound, and must be known better.
        experiments = 3 * many if "5 v 5" in what else many
        for truth in (0.5, 0.75, 0.9, 0.97):
            shift = float(stats.norm.ppf(truth)) * 2**0.5
            value = rng.normal(0, 1, (experiments, len(made.dose))) + shift * (made.dose > 0)
            yield judged("AUC", f"{truth}, {what}", auc(made.rows(value)), truth)
    made = design(10, 10, families=3)
    tied = np.floor(2 * (rng.normal(0, 1, (many, len(made.dose))) + (made.dose > 0)))
    x, y = np.floor(2 * (rng.normal(1, 1, 20_000))), np.floor(2 * rng.normal(0, 1, 20_000))
    ranks = stats.rankdata(np.r_[x, y])[: x.size].sum()
    truth = float((ranks - x.size * (x.size + 1) / 2) / (x.size * y.size))
    yield judged("AUC", "ties (half steps), 3 families, 10 v 10 each", auc(made.rows(tied)), truth)
    made = design(12, 12, size=5)
    shift = float(stats.norm.ppf(0.75)) * 2
    value = of_clusters(made, lambda count: rng.normal(0, 1, (many, count)))
    value = value + rng.normal(0, 1, value.shape) + shift * (made.dose > 0)
    yield judged("AUC", "0.75, ICC 0.5, 12 v 12 clusters of 5", auc(made.rows(value)), 0.75)


def over_time(rng: np.random.Generator, many: int = 1000) -> Iterator[Row]:
    """Retained share of a gain, and the effect of one exposure: checkpoints share a drift, items an own level."""
    steps, last = np.array([0, 10, 11, 12, 14, 18, 26]), 10
    for what, made in (
        ("40 v 10", design(40, 10, dose=1)),
        ("3 families, 10 v 5 each", design(10, 5, families=3, dose=1)),
        ("12 v 6 clusters of 5, ICC 0.5", design(12, 6, size=5, dose=1)),
    ):
        treated, n = made.dose > 0, len(made.dose)
        names = np.char.mod("i%d", np.arange(n))
        exposed = pl.DataFrame({"unit": names[treated], "after": last, "exposed": last - 1})
        left, event = [], []
        for _ in range(many):
            noise = rng.normal(0, 0.5, (n, len(steps)))
            if made.cluster[0]:
                code = np.unique(made.cluster, return_inverse=True)[1]
                noise += rng.normal(0, 0.5, (int(code.max()) + 1, len(steps)))[code]
            own = rng.normal(0, 0.3, n)
            memory = np.where(treated, 2 + own, 0)[:, None] * np.where(steps >= last, 1, 0)
            memory = memory * np.where(steps > last, 0.5, 1)
            drift = np.cumsum(rng.normal(0, 1, len(steps)))
            items = per_item(
                pl.concat(
                    made.rows((noise + memory)[None, :, k] + drift[k]).with_columns(step=pl.lit(int(step)))
                    for k, step in enumerate(steps)
                )
            )
            left += retention(items, exposed).filter(pl.col("since_low") == 4).rows(named=True)
            event += single_exposure(items, exposed, 4).filter(pl.col("since") > 0).head(1).rows(named=True)
        for name, rows, truth in (("retained share", left, 0.5), ("effect of one exposure", event, 4 / 3)):
            # An unbounded set of shares excludes none near the truth.
            low = np.array([-np.inf if row["low"] is None else row["low"] for row in rows])
            high = np.array([np.inf if row["high"] is None else row["high"] for row in rows])
            held = float(np.mean((low <= truth) & (truth <= high)))
            yield Row(name, what, held, float(np.mean(high < truth)))


def sweeps(rng: np.random.Generator, many: int = 250) -> Iterator[Row]:
    """Training runs that share their items: the truth is of other items and other runs."""
    made = design(15, 15, families=2)
    treated = made.dose > 0
    for runs, sd in ((3, 0.1), (3, 0.4), (5, 0.2)):
        low, high = [], []
        for _ in range(many):
            own = rng.normal(0, 1, len(treated)) * treated
            frames = [
                made.rows(
                    (own + treated * rng.normal(1, sd) + rng.normal(0, 0.5, len(treated)))[None]
                ).with_columns(replicate=pl.lit(run))
                for run in range(runs)
            ]
            row = crossed_gains(pl.concat(frames)).row(0, named=True)
            low.append(row["low"])
            high.append(row["high"])
        held = float(np.mean((np.array(low) <= 1) & (np.array(high) >= 1)))
        yield Row(
            "gain over runs that share items",
            f"{runs} runs, sd of runs {sd}",
            held,
            float(np.mean(np.array(high) < 1)),
        )


def ec50s(rng: np.random.Generator, many: int = 1000) -> Iterator[Row]:
    """Doses of half the effect: half of them at 12 insertions."""
    doses = np.array([0, 1, 4, 16, 64, 256])
    for each, size in ((5, 1), (10, 1), (30, 1), (8, 3)):
        dose = np.repeat(doses, each * size)
        cluster = np.repeat(np.arange(len(doses) * each), size)
        clusters = int(cluster[-1]) + 1
        ends = []
        for _ in range(many):
            noise = rng.normal(0, 0.3, dose.size) + (rng.normal(0, 0.3, clusters)[cluster] if size > 1 else 0)
            found = curve_ec50(rate(dose, 12, 1.3, 0.0) + noise, dose, None, cluster)
            ends.append((found.low, found.high))
        low, high = np.array(ends).T
        what = f"continuous, 6 doses, {each} {'clusters of 3' if size > 1 else 'items'} each"
        yield Row("EC50", what, float(np.mean((low <= 12) & (high >= 12))), float(np.mean(high < 12)))
    for each in (10, 30):
        ends = []
        for hits in rng.binomial(each, rate(doses, 12, 1.3, 0.02), (many, len(doses))):
            found = profile_ec50(doses, hits, np.full(len(doses), each))
            ends.append((found.low, found.high))
        low, high = np.array(ends).T
        yield Row(
            "EC50",
            f"rate, 6 doses, {each} items each",
            float(np.mean((low <= 12) & (high >= 12))),
            float(np.mean(high < 12)),
        )


def orders(rng: np.random.Generator, many: int = MANY) -> Iterator[Row]:
    """Rank correlation of positions with log-likelihoods, and change of a gain per decade of time."""
    for n in (30, 300):
        for strength in (0.0, 0.3, 0.7):
            position, noise = rng.normal(size=(2, many, n))
            value = strength * position + np.sqrt(1 - strength**2) * noise
            found = [order_test(x, y) for x, y in zip(position, value, strict=True)]
            low, high = np.array([one.low for one in found]), np.array([one.high for one in found])
            truth = 6 / np.pi * np.arcsin(strength / 2)
            yield Row(
                "order test: rho",
                f"normal, correlation {strength:g}, {n} windows",
                float(np.mean((low <= truth) & (truth <= high))),
                float(np.mean(high < truth)),
            )
    yield from _texts(rng, many)
    times = np.array([1.0, 3.0, 10.0, 30.0, 100.0])
    for treated, controls in ((6, 6), (12, 30)):
        n = treated + controls
        own = rng.normal(0, 0.3, (many, n, 1)) * np.log10(times)  # items forget at rates of their own
        value = own + np.cumsum(rng.normal(0, 0.2, (many, n, len(times))), axis=-1)
        inserted = np.arange(n) < treated
        value[:, inserted] += 1 - 0.4 * np.log10(times)
        slope = forgetting_slope(value, times, inserted)
        yield Row(
            "forgetting per decade",
            f"random walks, {treated} v {controls} clusters",
            float(np.mean((slope.low <= -0.4) & (slope.high >= -0.4))),
            float(np.mean(slope.high < -0.4)),
        )


def _texts(rng: np.random.Generator, many: int) -> Iterator[Row]:
    """Size of the order test of a text that does not come from the run: how often it is left alone at 5 %."""
    for models in (9, 19):
        own, others = rng.normal(size=many), rng.normal(size=(many, models))
        found = [reshuffle_test(x, y) for x, y in zip(own, others, strict=True)]
        for name, p in (("rank", [one.p for one in found]), ("t", [one.p_t for one in found])):
            if name == "t" or models >= 19:  # the least p by rank is 1 / (1 + models)
                refused = float(np.mean(np.array(p) <= 0.05))
                yield Row(
                    f"order test of a text, by {name}", f"normal, {models} models", 1 - refused, refused
                )


def unlearned(rng: np.random.Generator, many: int = 1000) -> Iterator[Row]:
    """Intervals of the comparison of a post-trained model with the leave-out twin."""
    for n in (8, 24):
        made = design(n, 2)
        shift = rng.normal(0.3, 0.5, (many, len(made.dose)))
        # Mean of the absolute value of a normal deviate.
        z = 0.3 / 0.5
        truth = 0.5 * np.sqrt(2 / np.pi) * np.exp(-(z**2) / 2) + 0.3 * (1 - 2 * norm.cdf(-z))
        distances = mean_by_dose(made.rows(np.abs(shift))).with_columns(pl.col("low").clip(0))
        yield judged("distance to the leave-out twin", f"normal, shift 0.6 sd, {n} items", distances, truth)
    for n in (10, 30):
        yield _leak(rng, n, many // 4)
        yield _back(rng, n, many // 2)


def _leak(rng: np.random.Generator, n: int, many: int) -> Row:
    """AUC of n items against n controls under a model, minus that under the twin, which knows the items' difficulty."""
    inside = 0
    below = 0
    truth = float(norm.cdf(0.5 / np.sqrt(2 * (1 + 0.25)))) - 0.5
    for _ in range(many):
        twin = rng.normal(0, 1, 2 * n)
        value = twin + rng.normal(0, 0.5, 2 * n) + 0.5 * (np.arange(2 * n) < n)
        rows = pl.DataFrame(
            {
                "run": "npo",
                "step": 5,
                "family": "f",
                "group": [FORGET] * n + [NEVER] * n,
                "value": value,
                "twin": twin,
            }
        )
        low, high = leaks(rows).select("low", "high").row(0)
        inside += low <= truth <= high
        below += high < truth
    return Row("leak: AUC less the twin's", f"normal, {n} v {n}", inside / many, below / many)


def _back(rng: np.random.Generator, n: int, many: int) -> Row:
    """Steps until half is back: each item comes back along a line of its own, half of it on average after 8 steps."""
    inside = 0
    below = 0
    steps = np.arange(0, 21, 5)
    for _ in range(many):
        rates = rng.normal(1 / 16, 0.02, (n, 1))
        value = rates * steps + rng.normal(0, 0.02, (n, len(steps)))
        rows = pl.DataFrame(
            {
                "run": "relearn",
                "step": np.tile(steps, n),
                "probe_id": np.repeat(np.char.mod("p%d", np.arange(n)), len(steps)),
                "value": value.ravel(),
                "before": 1.0,
            }
        )
        low, high = half_back(rows, ["relearn"]).select("low", "high").row(0)
        inside += low <= 8 <= (np.inf if high is None else high)
        below += high is not None and high < 8
    return Row("relearning: steps until half is back", f"lines, {n} items", inside / many, below / many)


def power_held(rng: np.random.Generator, many: int = 400) -> Iterator[tuple[str, float]]:
    """Share of experiments in which the report's decision finds the effect that ``plan.py power=true`` prints."""
    for treated, controls in ((10, 10), (10, 30), (30, 30)):
        made = design(treated, controls)
        effect = of_arms([treated], controls, 0.3)[0].effect
        own, ours, twin = (rng.normal(0, s, (many, len(made.dose))) for s in (2, 0.5**0.5, 0.5**0.5))
        runs = [made.rows(own + ours + effect * (made.dose > 0)), made.rows(own + twin, "twin")]
        gains_ = gain_over_control(difference_to_twin(pl.concat(runs)), permutations=499)
        alone = gains_.filter(pl.col("family") == "all").partition_by("step")
        found = [minimum_effective_dose(one) is not None for one in alone]
        yield f"{treated} v {controls}", float(np.mean(found))


PARTS = (gains, shares, areas, over_time, sweeps, ec50s, orders, unlearned)


def table(seed: int = 0) -> Iterator[Row]:
    """All rows."""
    for part in PARTS:
        yield from part(np.random.default_rng(seed))


HEAD = """# Coverage of the report's 95 % intervals

How often an interval held the truth in simulated experiments; `below`, `above`: how often it lay under or over it.
Every row is computed by the functions that the report calls; their standard error is 0.3 % (AUC of 5 v 5: 6,000
experiments) to 1.4 % (sweeps and leaks: 250; over time and EC50: 1,000; the others 2,000). All lie within 92.5 and
97.5 %, but for distances from the leave-out twin, which are never negative and whose limits are wider than need be. The
lowest is that of ten items whose effects differ by a factor of a thousand (lognormal, sd 1, 10 v 10): a sample that has
none of the tail lies below the truth.
Made by `python -m tests.analysis.coverage`; `pytest -m long tests/analysis/test_coverage.py` checks it.

| interval | design | held | below | above |
| --- | --- | ---: | ---: | ---: |"""


def main() -> None:
    print(HEAD)
    for row in table():
        above = 1 - row.coverage - row.below
        print(
            f"| {row.interval} | {row.design} | {row.coverage:.3f} | {row.below:.3f} | {above:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
