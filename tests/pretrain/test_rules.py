"""The seven rules of the design, over random corpora, blends, plans, topologies and restarts, as the trainer loads."""

import hashlib
import tempfile
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from palimpsest.data.errors import UserError
from palimpsest.data.mixture import Mixture, Phase
from palimpsest.data.order import Order
from palimpsest.data.tokenizer import TokenizerConfig, build
from palimpsest.data.tokens import TokenWriter
from palimpsest.insertion import audit as audits
from palimpsest.insertion import ledger, plan
from palimpsest.insertion.ledger import PlanViolation, Recorder
from palimpsest.insertion.overlay import Overlay
from palimpsest.pretrain.batches import Batches, Groups
from palimpsest.pretrain.config import TrainConfig
from tests.conftest import NOUNS

FACTORS = {
    "position": ("boundary", "start", "token", "word", "offset:3-9"),
    "displace": ("tail", "around", "overwrite"),
    "frame": ("document", "inline"),
    "spacing": ("uniform", "even", "massed:3", "expanding"),
    "loss": ("counted", "masked", "goldfish:3"),
    "batch": ("any", "apart"),
}


@cache
def tokenizer():
    rng = np.random.default_rng(0)
    return build((" ".join(rng.choice(NOUNS, 30)) for _ in range(300)), TokenizerConfig(vocab_size=300))


def corpus(directory, seed, documents, longest):
    directory.mkdir()
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(NOUNS, rng.integers(1, longest))) for _ in range(documents)]
    with TokenWriter(directory / "train", tokenizer().vocab_size, tokenizer().eod) as writer:
        writer.add(tokenizer().encode_batch(texts))


@st.composite
def cases(draw):
    """Corpora, the shape of a run, a design, and the topologies of its stretches between restarts."""
    batch, steps = draw(st.sampled_from([4, 6, 8, 12])), draw(st.integers(6, 14))
    cuts = sorted(draw(st.sets(st.integers(1, steps - 1), max_size=2)))
    stretches = []
    for start, stop in pairwise([0, *cuts, steps]):
        ranks = draw(st.sampled_from([n for n in (1, 2, 3, 4) if not batch % n]))
        micro = draw(st.sampled_from([n for n in (1, 2, 3, 4) if not (batch // ranks) % n]))
        stretches.append((start, stop, ranks, micro))
    levels = {name: (draw(st.sampled_from(values)),) for name, values in FACTORS.items()}
    if levels["spacing"] != ("uniform",):
        levels["batch"] = ("any",)
    design = {
        "families": {"ghost_sentences": {"words": draw(st.integers(3, 4)), "list_size": 25}},
        "doses": (0, 1, draw(st.integers(2, 5))),
        "items_per_dose": draw(st.integers(2, 3)),
        "per_window": draw(st.sampled_from([1, 2])) if levels["displace"] == ("tail",) else 1,
        "length_quantiles": 1,
        "heldout_probes": 0,
        "max_share": 1.0,
        "seed": draw(st.integers(0, 2**32 - 1)),
        **levels,
    }
    return {
        "seeds": draw(st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True)),
        "longest": draw(st.integers(3, 40)),
        "weights": draw(st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=6, max_size=6)),
        "length": draw(st.integers(70, 110)),
        "batch": batch,
        "steps": steps,
        "stretches": stretches,
        "design": design,
    }


def windows_of(case, place):
    """The order of one corpus, or of several in two phases with other weights."""
    orders = []
    for number, seed in enumerate(case["seeds"]):
        windows = case["steps"] * case["batch"]
        corpus(place / str(number), seed, 40 + windows * case["length"] // case["longest"], case["longest"])
        facts = {"vocab_size": tokenizer().vocab_size, "eod": tokenizer().eod, "seed": seed}
        orders.append(
            Order(place / str(number), corpus_digest=str(seed), sequence_length=case["length"], **facts)
        )
    if len(orders) == 1:
        return orders[0]
    half = case["steps"] // 2 * case["batch"]
    sizes = half, case["steps"] * case["batch"] - half
    weights = case["weights"][: len(orders)], case["weights"][-len(orders) :]
    return Mixture(orders, [Phase(size, tuple(one)) for size, one in zip(sizes, weights, strict=True)])


def planned(case, order, place, **other):
    config = plan.InsertionConfig(**(case["design"] | other))
    shape = plan.RunShape(
        steps=case["steps"], global_batch_size=case["batch"], sequence_length=case["length"]
    )
    plan.create(
        config, shape, order=order, tokenizer=tokenizer(), heldout=[("0", " ".join(NOUNS))], directory=place
    )
    return plan.read(place)


def trained(case, made, order, place, overlay=None):
    """What every step hands to the model, by position, and the ledger; killed and gone on with at every cut."""
    overlay = overlay or (made.overlay() if made else Overlay.empty())
    seen, head, digest = {}, "", made.digest if made else ""

    def consume(start, stop, ranks, micro):
        train = TrainConfig(
            steps=case["steps"],
            global_batch_size=case["batch"],
            micro_batch_size=micro,
            sequence_length=case["length"],
            seed=1,
            checkpoint_every=1,
        )
        tables = []
        for rank in range(ranks):
            recorder = Recorder(made, case["batch"], rank)
            batches = Batches(
                *(order, overlay, recorder, Groups(made), train),
                data_rank=rank,
                data_size=ranks,
                device=torch.device("cpu"),
            )
            given = [batch for step in range(start, stop) for batch in batches.step(step)]
            tables.append(recorder.drain())
            rows = torch.cat([torch.cat([batch.tokens, batch.labels[:, -1:]], dim=1) for batch in given])
            weights = torch.cat([batch.loss_mask for batch in given])
            for position, row, mask in zip(
                tables[-1][0]["position"], rows.numpy(), weights.numpy(), strict=True
            ):
                seen[position] = row, mask
        windows, exposures = zip(*tables, strict=True)
        return ledger.write_part(
            place,
            start=start,
            stop=stop,
            global_batch_size=case["batch"],
            windows=windows,
            exposures=exposures,
            previous=head,
            plan=digest,
            order=order.identity,
        )

    for start, stop, ranks, micro in case["stretches"]:
        consume(start, stop, 1, case["batch"])  # was killed before its checkpoint was finished
        ledger.discard_beyond(place, start)
        seen = {position: found for position, found in seen.items() if position < start * case["batch"]}
        head = consume(start, stop, ranks, micro)
    return seen, ledger.read(place, head=head)


def digests(place):
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in sorted(place.glob("*/train.*"))}


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(cases(), st.data())
def test_the_seven_rules(case, data):
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        order = windows_of(case, place)
        try:
            made = planned(case, order, place / "plan")
            longer = case["design"]["families"]["ghost_sentences"] | {"words": 5}
            reworded = planned(case, order, place / "reworded", families={"ghost_sentences": longer})
        except UserError as error:
            assume("no room" not in str(error) and "windows for them" not in str(error))
            raise
        before = digests(place)
        seen, consumed = trained(case, made, order, place / "ledger")
        plain, twin = trained(case, None, order, place / "twin-ledger")
        # 1. The corpus is never rewritten.
        assert digests(place) == before
        # 2. Outside the planned windows nothing changes, inside the length stays.
        assert sorted(seen) == sorted(plain) == list(range(case["steps"] * case["batch"]))
        at = set(made.exposures["position"])
        for position, (window, mask) in seen.items():
            assert plain[position][0].tolist() == order.window(position).tolist()
            if position not in at:
                assert window.tolist() == plain[position][0].tolist()
                assert mask.all()
        # 3. Whole and exact, in the range of the labels or marked as not.
        tokens = made.wordings["tokens"].to_list()
        for row in made.exposures.iter_rows(named=True):
            window, mask = seen[row["position"]]
            text = tokens[row["wording"]]
            assert window[row["offset"] : row["offset"] + len(text)].tolist() == text
            assert row["offset"] > 0 or case["design"]["position"] == ("start",)
            if row["loss"] < 2 and row["offset"]:
                own = mask[row["offset"] - 1 : row["offset"] + len(text) - 1]
                assert (own == 1 - row["loss"]).all()
        # 4. Counts are exact, and there are controls.
        doses = case["design"]["doses"]
        assert sorted(made.items["dose"]) == sorted(doses * case["design"]["items_per_dose"])
        counted = np.bincount(made.exposures["item"], minlength=len(made.items))
        assert counted.tolist() == made.items["dose"].to_list()
        # 5. Placement knows no texts.
        pairs = [
            one.exposures.select("position", "item").sort("position", "item") for one in (made, reworded)
        ]
        assert pairs[0].equals(pairs[1])
        assert made.items["text"].to_list() != reworded.items["text"].to_list()
        # 6. Proven: what is right passes, a skipped exposure stops the run, a changed token fails the audit.
        result = audits.audit(made, consumed, twin, order, tokenizer())
        assert result["verdict"] == "PASS", result["failures"]
        left = data.draw(st.integers(0, len(made.exposures) - 1))
        fewer = made.exposures[:left].vstack(made.exposures[left + 1 :])
        skipping = replace(made, exposures=fewer)
        with pytest.raises(PlanViolation, match="no step was taken"):
            trained(case, made, order, place / "broken", skipping.overlay())
        position = data.draw(st.integers(0, case["steps"] * case["batch"] - 1))
        window, mask = seen[position]
        window = window.copy()
        window[data.draw(st.integers(0, case["length"]))] += 1
        changed = consumed.windows.with_columns(
            digest=pl.when(pl.col("position") == position)
            .then(pl.lit(ledger.window_digest(window, mask), dtype=pl.UInt64))
            .otherwise("digest")
        )
        lying = replace(consumed, windows=changed)
        assert audits.audit(made, lying, twin, order, tokenizer())["verdict"] == "FAIL"
        # 7. Nothing is dropped in silence: what does not fit is refused by name.
        huge = {"ghost_sentences": longer | {"words": 40}}
        with pytest.raises(UserError, match=r"longer than a window: item ghost-\d+"):
            planned(case, order, place / "huge", families=huge)
        assert not (place / "huge").exists()


def test_any_number_of_workers_hands_out_the_same(tmp_path):
    """The overlay under torch's own loader: 0, 1 and 2 processes, which share one plan, and no state."""
    from palimpsest.insertion.adapters import MapStyle

    case = {"seeds": [1], "longest": 20, "length": 80, "batch": 4, "steps": 10}
    case["design"] = {
        "families": {"ghost_sentences": {"words": 4, "list_size": 25}},
        "doses": (0, 1, 4),
        "items_per_dose": 3,
        "heldout_probes": 0,
        "max_share": 1.0,
        "seed": 1,
    }
    order = windows_of(case, tmp_path)
    made = planned(case, order, tmp_path / "plan")
    overlay = made.overlay()
    expected = [overlay.apply(p, order.window(p))[:-1].tolist() for p in range(40)]
    assert sum(row != order.window(p)[:-1].tolist() for p, row in enumerate(expected)) == 15
    for workers in (0, 1, 2):
        loader = torch.utils.data.DataLoader(
            MapStyle(order.dataset, overlay), batch_size=4, sampler=range(40), num_workers=workers
        )
        for _ in range(2):  # a second epoch doubles nothing
            rows = [row for batch in loader for row in batch["tokens"].tolist()]
            assert rows == expected
