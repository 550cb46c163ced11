"""A corpus, a plan, and a stand-in for the trainer that consumes every window through the real recorder."""

import numpy as np

from palimpsest.data.order import Order
from palimpsest.data.tokenizer import TokenizerConfig, build
from palimpsest.data.tokens import TokenWriter
from palimpsest.insertion import plan
from palimpsest.insertion.ledger import Ledger, Recorder
from palimpsest.insertion.overlay import Overlay
from tests.conftest import NOUNS

STEPS, BATCH, LENGTH = 30, 4, 48


def simulated(directory, *, seed=1, **insertion):
    """A small corpus and a plan over it."""
    rng = np.random.default_rng(2)
    texts = [" ".join(rng.choice(NOUNS, rng.integers(8, 60))) for _ in range(400)]
    tokenizer = build(iter(texts), TokenizerConfig(vocab_size=300))
    with TokenWriter(directory / "train", tokenizer.vocab_size, tokenizer.eod) as writer:
        writer.add(tokenizer.encode_batch(texts[:300]))
    order = Order(
        directory,
        corpus_digest="corpus",
        vocab_size=tokenizer.vocab_size,
        eod=tokenizer.eod,
        sequence_length=LENGTH,
        seed=seed,
    )
    settings = {
        "families": {"passages": {"tokens": 12}, "ghost_sentences": {"words": 5, "list_size": 25}},
        "doses": (0, 1, 4),
        "items_per_dose": 4,
        "heldout_probes": 4,
        "seed": seed,
    }
    plan.create(
        plan.InsertionConfig(**(settings | insertion)),
        plan.RunShape(steps=STEPS, global_batch_size=BATCH, sequence_length=LENGTH),
        order=order,
        tokenizer=tokenizer,
        heldout=[(f"{k:03d}", text) for k, text in enumerate(texts[300:])],
        directory=directory / "plan",
    )
    order.tokenizer, order.texts = tokenizer, texts[:300]
    return plan.read(directory / "plan"), order


def consume(made, order, overlay=None, checked=True, masked=True) -> Ledger:
    """Hand every window over, as the trainer does; ``overlay`` is what the loader applies.

    With ``checked=False`` the recorder's own checks are off, as if the trainer had been tampered with too; with
    ``masked=False`` the trainer counts every token, whatever the plan says about the loss.
    """
    overlay = overlay or (made.overlay() if made else Overlay.empty())
    recorder = Recorder(made, BATCH, rank=0)
    if not checked:
        recorder._check = lambda position, window, mask: None
    for position in range(STEPS * BATCH):
        window = overlay.apply(position, order.window(position))
        mask = overlay.loss_mask(position, LENGTH) if masked else None
        mask = np.ones(LENGTH, dtype=np.float32) if mask is None else mask
        recorder.record(np.array([position]), window[None, :-1], window[None, 1:], mask[None])
    windows, exposures = recorder.drain()
    digest = made.digest if made else ""
    return Ledger(windows, exposures, STEPS, BATCH, "head", digest, order.identity)
