"""The worked examples of docs/architecture.md do what the page says, as they stand there."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys

import polars as pl
import pytest
import torch
import yaml

from palimpsest.analysis.figures import FIGURES, save
from palimpsest.analysis.metrics import METRICS
from palimpsest.analysis.report import build
from palimpsest.data.errors import UserError
from palimpsest.data.tokenizer import TokenizerConfig
from palimpsest.data.tokenizer import build as tokenizer
from palimpsest.insertion.families import registry
from palimpsest.insertion.items import tokenize_items, tokenize_probes
from palimpsest.pretrain.config import PosttrainConfig
from palimpsest.pretrain.posttraining import methods, trainer
from tests.analysis.synthetic import experiment
from tests.conftest import REPO
from tests.pretrain.test_posttraining import RETAIN, rows

PAGE = (REPO / "docs" / "architecture.md").read_text()
FILES = dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture
def type_in(monkeypatch):
    """Runs a file of the page; what it registers is forgotten after the test."""
    for registered in (METRICS, FIGURES, methods.METHODS, registry._FAMILIES):
        for name in list(registered):
            monkeypatch.setitem(registered, name, registered[name])

    def run(name, namespace=None):
        before = [(table, set(table)) for table in (METRICS, FIGURES, methods.METHODS, registry._FAMILIES)]
        exec(compile(FILES[name], name, "exec"), namespace if namespace is not None else {})
        added = [(table, key) for table, keys in before for key in set(table) - keys]
        for table, key in added:
            value = table.pop(key)
            monkeypatch.setitem(table, key, value)
        return [key for _, key in added]

    return run


def test_the_metric_is_a_table_of_the_report(type_in, tmp_path):
    assert type_in("analysis/metrics/worst_token.py") == ["worst_token"]
    inputs = experiment(steps=(0, 16, 250))
    build(dataclasses.replace(inputs, metrics=["worst_token"]), tmp_path)
    found = pl.read_csv(tmp_path / "estimates.csv").filter(pl.col("metric") == "worst_token")
    gains = found.filter(
        (pl.col("statistic") == "gain") & (pl.col("run") == "perturbed") & (pl.col("family") == "all")
        & (pl.col("step") == 250)
    ).sort("dose")  # fmt: skip
    truth = 0.06 * 6  # nats a token at dose 64, of every token and so of the least likely one
    assert gains["low"][-1] < truth < gains["high"][-1]
    page = (tmp_path / "report.html").read_text()
    assert "worst_token" in page
    assert "min of ln p(token | before)" in page


def test_a_new_file_of_metrics_is_found_by_itself(tmp_path):
    """In a checkout with that file and no other change."""
    checkout = tmp_path / "palimpsest"
    shutil.copytree(REPO / "analysis", checkout / "analysis")
    shutil.copy(REPO / "palimpsest" / "__init__.py", checkout)
    for wing in ("data", "insertion", "pretrain"):
        (checkout / wing).symlink_to(REPO / wing)
    name = "analysis/metrics/worst_token.py"
    (checkout / name).write_text(FILES[name])
    program = (
        "from palimpsest.analysis.metrics import METRICS; print(METRICS['worst_token'].compute.__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "palimpsest.analysis.metrics.worst_token\n", done.stderr


def test_the_family_makes_items_that_can_be_planned(type_in):
    assert type_in("insertion/families/door_codes.py") == ["door_codes"]
    settings = yaml.safe_load(FILES["conf/insertion/door_codes.yaml"])["families"]["door_codes"]
    context = registry.FamilyContext(3, tokenizer(iter([]), TokenizerConfig(vocab_size=257)), [])
    items = registry.make("door_codes", context, 20, settings)
    assert items[:5] == registry.make("door_codes", context, 5, settings)
    assert len({item.text for item in items}) == 20
    assert all(len(re.search(r"is (\d+)\.$", item.text)[1]) == settings["digits"] for item in items)
    assert registry.make("door_codes", context, 1, {"digits": 6})[0].probes[1].bits == pytest.approx(
        19.93, abs=0.01
    )
    planned, _ = tokenize_items(items, context.tokenizer)
    assert (
        planned["bits"].to_list() == [None] * 20
    )  # the family claims bits of the code, not of the whole text
    probes = [(item.id, item.family, probe) for item in items for probe in item.probes]
    assert tokenize_probes(probes, context.tokenizer)[1] == []  # no question is left out


def test_the_method_raises_a_loss_up_to_its_ceiling(type_in):
    added = type_in("pretrain/posttraining/methods.py", vars(methods))
    assert added == [yaml.safe_load(FILES["conf/posttrain/bounded_ascent.yaml"])["method"]]
    vars(methods).pop("bounded_ascent")
    used = methods.METHODS["bounded_ascent"]
    nll = torch.tensor([[1.0, 2.0, 6.0], [4.0, 9.0, 9.0]], requires_grad=True)  # the last two do not count
    batch = methods.Batch(rows(nll), rows(RETAIN))
    settings = trainer.method_settings(used, PosttrainConfig(method="bounded_ascent"))
    loss = used.loss(batch, settings)
    assert loss.item() == pytest.approx((4 + 3 + 0 + 1) / 4)
    loss.backward()
    assert (nll.grad != 0).tolist() == [[True, True, False], [True, False, False]]
    assert (nll.grad <= 0).all()  # a step against the gradient raises the losses


def test_the_figure_draws_and_checks_its_rows(type_in, tmp_path):
    assert type_in("analysis/figures/steps.py") == ["value_by_step"]
    made = pl.DataFrame({"step": [0, 10], "estimate": [-4.0, -2.0], "run": "perturbed"})
    entry = FIGURES["value_by_step"]
    save(entry.draw(made), tmp_path / "f", formats=["svg", "csv"])
    assert "Value by step" in (tmp_path / "f.svg").read_text()
    assert pl.read_csv(tmp_path / "f.csv")["estimate"].to_list() == [-4.0, -2.0]
    with pytest.raises(UserError, match="needs the column 'run'"):
        entry.draw(made.drop("run"))
