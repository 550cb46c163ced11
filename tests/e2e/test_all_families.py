"""The experiment with every family at once, made small: planned, trained, audited, scored and reported."""

import math

import polars as pl
import pytest

from data.tokenizer import TokenizerConfig, build
from insertion.families.registry import names
from tests.conftest import Workplace, write_text

SMALL = [
    "+experiment=all_families",
    "corpus=jsonl",
    "corpus.source.paths=[text.jsonl]",
    "corpus.tokenizer.vocab_size=512",
    "corpus.heldout_fraction=0.1",
    "model.hidden=32",
    "model.ffn=64",
    "insertion.doses=[0,1]",
    "insertion.families.traps.path=reference",
    "insertion.heldout_probes=4",
    "+insertion.families.knights_knaves.people=2",
    "+insertion.families.time_series.asked=1",
    "+insertion.families.watermarks.draws=9",
    "train.steps=2",
    "train.global_batch_size=64",
    "train.sequence_length=768",
    "optimizer.warmup_steps=1",
    "report.bootstrap=100",
    "runtime.device=cpu",
]


def reference_model(directory):
    """A tiny Llama of random weights with a tokenizer of bytes, from which traps are sampled."""
    transformers = pytest.importorskip("transformers")
    tokenizer = build(iter([]), TokenizerConfig(vocab_size=257))
    config = transformers.LlamaConfig(
        vocab_size=257, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=tokenizer.eod, eos_token_id=tokenizer.eod,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save(directory / "tokenizer.json")


@pytest.mark.slow
def test_every_family_in_one_run(tmp_path):
    reference_model(tmp_path / "reference")
    place = Workplace(tmp_path, SMALL)
    write_text(tmp_path / "text.jsonl", 3000)
    done = place.ok("run", timeout=600)
    assert "audit: PASS" in done.out
    (directory,) = (tmp_path / "runs" / "all_families").glob("run-*")
    assert (directory / "report" / "report.html").is_file()

    items = pl.read_parquet(directory / "plan" / "items.parquet")
    assert set(items["family"]) == set(names())
    assert (items.group_by("family", "dose").len()["len"] == 4).all()
    probes = pl.read_parquet(directory / "plan" / "probes.parquet")
    assert set(probes.drop_nulls("item_id")["item_id"]) == set(items["item_id"])
    for run in ("perturbed", "twin"):
        for step in (0, 2):
            scores = pl.read_parquet(directory / "scores" / run / f"step_{step:08d}" / "scores.parquet")
            assert set(scores["probe_id"]) == set(probes["probe_id"])

    # To the twin, a reference that met none of them, members and non-members of a family are alike.
    twin = (
        probes.filter(pl.col("kind") == "verbatim")
        .join(scores, on="probe_id")
        .select("item_id", loglik=pl.col("logprob").list.mean())
        .join(items, on="item_id")
    )
    above = twin.join(twin, on="family", suffix="_other").filter(
        (pl.col("dose") > 0) & (pl.col("dose_other") == 0)
    )
    auc = (above["loglik"] > above["loglik_other"]).mean()
    error = math.sqrt(items["family"].n_unique() * 4 * 4 * 9 / 12) / len(above)
    assert abs(auc - 0.5) < 3 * error
