"""Attacks with passes of their own on a model that has memorised some texts and on one that has not."""

import numpy as np
import polars as pl
import pytest
import torch

from palimpsest.analysis.attacks import values
from palimpsest.analysis.attacks.values import AttackConfig
from palimpsest.data.errors import UserError

transformers = pytest.importorskip("transformers")
from palimpsest.analysis.attacks import passes  # noqa: E402
from palimpsest.analysis.scoring import reader as readers  # noqa: E402

VOCABULARY, EOD = 60, 0
RNG = np.random.default_rng(3)
MEMBERS = [RNG.integers(1, VOCABULARY, length).tolist() for length in (12, 12, 14, 14, 16, 16, 18, 18)]
OTHERS = [RNG.integers(1, VOCABULARY, length).tolist() for length in (12, 12, 14, 14, 16, 16, 18, 18)]
FREQUENCIES = np.full(VOCABULARY, 1 / VOCABULARY)


def llama(positions=64):
    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY + 4,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=positions,
    )
    return transformers.LlamaForCausalLM(config).eval()


def trained(strange):
    """A model trained on rows of texts until it knows the members well: four rows a step, ``strange`` of them random
    texts, the others members, one behind the other in random order."""
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    rng = np.random.default_rng(5)
    for _ in range(200):
        rows = [
            [
                rng.integers(1, VOCABULARY, 15).tolist() if row < strange else MEMBERS[k]
                for k in rng.permutation(len(MEMBERS))[:4]
            ]
            for row in range(4)
        ]
        ids = torch.tensor([[EOD, *(t for text in texts for t in (*text, EOD))][:52] for texts in rows])
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def memorised():
    """It expects members alone."""
    return trained(strange=0)


@pytest.fixture(scope="module")
def expecting():
    """It expects members behind members, and no member behind anything else, as attacks with prefixes suppose."""
    return trained(strange=2)


def plan():
    """Half of the items inserted 8 times, half never."""
    texts = [*MEMBERS, *OTHERS]
    doses = [8] * len(MEMBERS) + [0] * len(OTHERS)
    items = pl.DataFrame(
        [
            {"item_id": f"i{k:02}", "family": "words", "stratum": "words", "cluster": None, "dose": dose}
            for k, dose in enumerate(doses)
        ],
        schema_overrides={"dose": pl.Int32, "cluster": pl.String},
    )
    probes = pl.DataFrame(
        [
            {
                "probe_id": f"i{k:02}/verbatim",
                "item_id": f"i{k:02}",
                "kind": "verbatim",
                "name": "",
                "tokens": text,
            }
            for k, text in enumerate(texts)
        ],
        schema_overrides={"tokens": pl.List(pl.Int32)},
    )
    return items, probes


def attacked(model, config, frequencies=FREQUENCIES):
    items, probes = plan()
    every = values.texts(items, probes, config)
    found = passes.attacked(readers.Reader(model, EOD, VOCABULARY), every, every, config, lambda: frequencies)
    return values.attack_rows(
        items, probes, found.with_columns(run=pl.lit("perturbed"), step=pl.lit(9))
    ), every


def area(rows, name):
    own = rows.filter((pl.col("metric") == name) & pl.col("value").is_not_null())
    members, others = (own.filter(pl.col("dose") == dose)["value"].to_numpy() for dose in (8, 0))
    return float((members[:, None] > others).mean() + 0.5 * (members[:, None] == others).mean())


@pytest.mark.parametrize("name", values.KNOWN)
def test_a_model_that_has_memorised_members_gives_them_away(request, name):
    model = request.getfixturevalue("expecting" if "recall" in name else "memorised")
    rows, _ = attacked(model, AttackConfig(names=(name,), neighbours=4))
    assert area(rows, name) > 0.9


@pytest.mark.parametrize("name", values.KNOWN)
def test_a_model_that_saw_none_gives_none_away(name):
    """Of eight against eight, or six against six, the area is outside 0.15 to 0.85 by chance in one of 60 at most."""
    rows, _ = attacked(llama(), AttackConfig(names=(name,), neighbours=4))
    assert 0.15 < area(rows, name) < 0.85


def test_texts_in_prefixes_have_no_value_and_the_others_have(memorised):
    rows, every = attacked(memorised, AttackConfig(names=("recall", "con_recall", "dc_pdd"), shots=2))
    aside = every.drop_nulls("aside")
    assert sorted(aside["aside"]) == ["member", "member", "nonmember", "nonmember"]
    for name in ("recall", "con_recall"):
        own = rows.filter(pl.col("metric") == name)
        assert set(own.filter(pl.col("value").is_null())["probe_id"]) == set(aside["probe_id"])
        assert own.filter(pl.col("value").is_null())["reason"].unique().to_list() == [
            "it stands in prefixes, or has none"
        ]
    assert rows.filter(pl.col("metric") == "dc_pdd")["value"].null_count() == 0


def loglik(model, ids, last):
    """Log-likelihood of the last tokens of ids, one forward pass."""
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, :-1, :VOCABULARY].log_softmax(-1)
    return float(logits.gather(-1, torch.tensor(ids[1:])[:, None])[-last:].sum())


def test_recall_is_its_formula_behind_the_prefix(memorised):
    rows, every = attacked(memorised, AttackConfig(names=("recall",), shots=2))
    prefix = [t for row in every.filter(pl.col("aside") == "nonmember")["tokens"] for t in (*row, EOD)]
    told = dict(rows.select("probe_id", "value").iter_rows())
    for probe, tokens in every.filter(pl.col("aside").is_null()).select("probe_id", "tokens").iter_rows():
        room = 64 - 1 - len(tokens)
        behind = loglik(memorised, [EOD, *prefix[-room:], *tokens], len(tokens))
        assert told[probe] == pytest.approx(behind / loglik(memorised, [EOD, *tokens], len(tokens)), rel=1e-4)


def test_copies_differ_in_the_share_that_is_asked_for(memorised):
    reader = readers.Reader(memorised, EOD, VOCABULARY)
    config = AttackConfig(neighbours=50, replaced=0.25)
    copies = np.array(passes.altered(reader, MEMBERS[0], config, np.random.default_rng(1)))
    changed = copies != np.array(MEMBERS[0])
    assert (changed.sum(1) == 3).all()  # a replaced token is never the true one
    assert changed.any(0).all()
    assert copies.max() < VOCABULARY


def test_the_gradient_norm_is_that_of_autograd(memorised):
    reader = readers.Reader(memorised, EOD, VOCABULARY)
    norms = reader.gradient_norms(OTHERS[0])
    ids = torch.tensor([[EOD, *OTHERS[0]]])
    logits = memorised(ids).logits[:, :-1, :VOCABULARY]
    loss = torch.nn.functional.cross_entropy(logits[0], ids[0, 1:])
    gradients = torch.autograd.grad(loss, list(memorised.parameters()))
    assert norms == pytest.approx([float(one.norm()) for one in gradients], rel=1e-4)
    assert all(one.grad is None for one in memorised.parameters())


def test_values_do_not_depend_on_the_batch(memorised, monkeypatch):
    config = AttackConfig(names=("neighbourhood", "recall"), neighbours=3)
    together, _ = attacked(memorised, config)
    monkeypatch.setitem(readers.TOKENS_A_BATCH, "cpu", 1)
    alone, _ = attacked(memorised, config)
    both = [rows["value"].fill_null(0).to_list() for rows in (together, alone)]
    assert both[0] == pytest.approx(both[1], rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"names": ("recal",)}, "there is no attack recal; did you mean 'recall'"),
        ({"names": ()}, "must be one name or more"),
        ({"names": ("recall", "recall")}, "each once"),
        ({"shots": 0}, "attack.shots=0 must be at least 1"),
        ({"replaced": 0.0}, "attack.replaced=0.0 must be above 0"),
    ],
)
def test_mistakes_are_named(settings, says):
    with pytest.raises(UserError) as error:
        AttackConfig(**settings)
    assert says in str(error.value)
