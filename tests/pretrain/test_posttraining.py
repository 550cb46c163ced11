"""Losses of post-training methods by hand on two rows, and independent of how rows are cut into micro-batches."""

import math

import numpy as np
import pytest
import torch

from palimpsest.data.errors import UserError
from palimpsest.pretrain.config import PosttrainConfig
from palimpsest.pretrain.posttraining import methods, texts, trainer
from palimpsest.pretrain.posttraining.methods import METHODS, Batch, Rows
from tests import warm

MASK = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
NLL = torch.tensor([[1.0, 2.0, 3.0], [4.0, 9.0, 9.0]])
BEFORE = torch.tensor([[1.0, 1.0, 1.0], [5.0, 9.0, 9.0]])
RETAIN = torch.tensor([[0.5, 0.5, 0.5], [1.5, 9.0, 9.0]])


def rows(nll=NLL, part=slice(None), **more):
    labels = torch.tensor([[0, 1, 2], [2, 0, 0]])[part]
    return Rows(nll=nll[part], mask=MASK[part], tokens=4, rows=2, labels=labels, **more)


def loss(name, batch=None, retain_loss="nll", **settings):
    known = trainer.method_settings(METHODS[name], PosttrainConfig(method=name, settings=settings))
    batch = batch or Batch(rows(), rows(RETAIN), rows(BEFORE), rows(RETAIN))
    return methods.step_loss(METHODS[name], retain_loss, batch, known).item()


def softplus(x):
    return math.log1p(math.exp(x))


KEPT = (0.5 * 3 + 1.5) / 4
"""Mean loss a token of the retain rows; those of the forget rows add up to 6 and 4, before to 3 and 5."""
EXPECTED = {
    "gradient_ascent": -10 / 4,
    "grad_diff": -10 / 4 + KEPT,
    "npo": (2 / 0.1) * (softplus(-0.1 * 3) + softplus(0.1 * 1)) / 2 + KEPT,
    "simnpo": 0.125 * (2 / 4.5) * (softplus(-4.5 * 2) + softplus(-4.5 * 4)) / 2 + KEPT,
    "wga": -sum(math.exp(-x) * x for x in (1, 2, 3, 4)) / 4 + KEPT,
    "satimp": -0.1 * sum(math.exp(-5 * x) * (1 - math.exp(-x)) * x for x in (1, 2, 3, 4)) / 4 + KEPT,
    "random_labels": 10 / 4 + KEPT,
    "relearn": 10 / 4,
    "finetune": KEPT,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_loss_is_its_formula(name):
    assert loss(name) == pytest.approx(EXPECTED[name], rel=1e-6)


def test_segments_are_unlearned_and_the_rest_of_their_texts_is_kept():
    """Of the four counted losses 1 2 (first row) and 3 4 minus the mask's, those of one segment rise."""
    segment = torch.zeros_like(MASK)
    segment[0, 1] = 1.0
    segment[1] = MASK[1]
    own = rows(segment=segment, segment_tokens=segment.sum().item())
    inside = (NLL * segment).sum() / segment.sum()
    rest = (NLL * (MASK - segment)).sum() / (MASK - segment).sum()
    batch = Batch(own, rows(RETAIN), rows(BEFORE), rows(RETAIN))
    assert loss("segments", batch, kept=0.5) == pytest.approx((0.5 * rest - inside).item() + KEPT)
    whole = rows(segment=MASK, segment_tokens=MASK.sum().item())
    assert loss("segments", Batch(whole, rows(RETAIN))) == pytest.approx(-10 / 4 + KEPT)


def test_npo_of_an_unchanged_model_pulls_like_half_of_gradient_ascent():
    """Its gradient at the start is that of the loss of the row (Zhang et al. 2024, 3.2)."""
    nll = NLL.clone().requires_grad_()
    batch = Batch(rows(nll), rows(RETAIN), rows(NLL), None)
    value = methods.step_loss(METHODS["npo"], "nll", batch, {"gamma": 1.0, "alpha": 0.0, "beta": 0.1})
    value.backward()
    assert value.item() == pytest.approx(20 * math.log(2))
    torch.testing.assert_close(nll.grad, -MASK / 2)


def test_dpo_prefers_the_refusal():
    """Answers lost 3 and -1 nats, refusals 1 and 0: rows pull by 2 and -1."""
    refusal = torch.tensor([[1.0, 1.0, 1.0], [2.0, 9.0, 9.0]])
    before = torch.tensor([[1.0, 1.0, 0.0], [2.0, 9.0, 9.0]])
    batch = Batch(rows(), rows(RETAIN), rows(BEFORE), None, rows(refusal), rows(before))
    expected = (2 / 0.1) * (softplus(-0.1 * 2) + softplus(0.1 * 1)) / 2 + KEPT
    assert loss("dpo", batch) == pytest.approx(expected, rel=1e-6)


def test_deviation_is_the_cosine_to_the_former_states():
    """Of four counted states three are as before and one is turned round."""
    before = torch.ones(2, 3, 8)
    now = before.clone()
    now[1] = -1.0
    batch = Batch(*(rows(hidden=state) for state in (now, before, before, before)))
    assert loss("deviation", batch, slant=0.0) == pytest.approx((3 - 1) / 4)


def test_deviation_turns_to_one_side_from_the_start():
    """An unchanged model's loss is the same for every state, and its gradient is not 0."""
    before = torch.ones(2, 3, 8)
    now = before.clone().requires_grad_()
    batch = Batch(*(rows(hidden=state) for state in (now, before, before, before)))
    settings = trainer.method_settings(METHODS["deviation"], PosttrainConfig(method="deviation"))
    value = methods.step_loss(METHODS["deviation"], "nll", batch, settings)
    assert 0.99 < value.item() < 1
    value.backward()
    counted = now.grad.norm(dim=-1)[MASK.bool()]
    assert counted.min() > 1e-3
    assert counted == pytest.approx(counted[0].item())


def logits(seed):
    return torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(seed))


def of_logits(values, part=slice(None)):
    labels = torch.tensor([[0, 1, 2], [2, 0, 0]])[part]
    nll = torch.nn.functional.cross_entropy(values[part].transpose(1, 2), labels, reduction="none")
    return Rows(nll=nll, mask=MASK[part], tokens=4, rows=2, labels=labels, logits=values[part])


@pytest.mark.parametrize(
    ("name", "retain_loss"), [("undial", "nll"), ("ceu", "nll"), ("grad_diff", "kl"), ("npo", "nll")]
)
def test_micro_batches_add_up(name, retain_loss):
    def batch(part):
        return Batch(*(of_logits(logits(seed), part) for seed in range(4)))

    whole = loss(name, batch(slice(None)), retain_loss)
    parts = [loss(name, batch(slice(k, k + 1)), retain_loss) for k in range(2)]
    assert sum(parts) == pytest.approx(whole, rel=1e-5)


def test_the_divergence_from_an_equal_model_is_none():
    same = of_logits(logits(0))
    assert loss("grad_diff", Batch(same, same, same, same), "kl") == pytest.approx(
        -same.loss.item(), abs=1e-6
    )


def test_ceu_is_least_where_the_model_already_ignores_the_true_token():
    """Of three targets of the first row the first is ignored; of the second row nothing is left."""
    values = torch.zeros(2, 3, 5)
    assert loss("ceu", Batch(of_logits(values), of_logits(values))) == pytest.approx(math.log(5), rel=1e-6)
    values[0, 1, 1] = values[0, 2, 2] = -50.0
    assert loss("ceu", Batch(of_logits(values), of_logits(values))) == pytest.approx(math.log(4), rel=1e-5)


def test_undial_takes_beta_off_the_true_token():
    values = torch.zeros(2, 3, 5)
    batch = Batch(*(of_logits(values) for _ in range(4)))
    assert loss("undial", batch, beta=2.0) == pytest.approx(math.log(5), rel=1e-6)
    # The least that cross-entropy can be is the entropy of the target: reached by a model that took it off.
    target = values.scatter(-1, batch.forget.labels[..., None], -2.0)
    p = torch.tensor([-2.0, 0, 0, 0, 0]).softmax(-1)
    reached = Batch(of_logits(target), *(of_logits(values) for _ in range(3)))
    assert loss("undial", reached, beta=2.0) == pytest.approx(float(-(p * p.log()).sum()), rel=1e-5)


def test_pdu_flattens_logits_under_a_constraint():
    """A true token 3 above four others at 0: 3 - 3/5 in every row."""
    values = torch.zeros(2, 3, 5)
    values[..., 4] = 3.0
    batch = Batch(*(of_logits(values) for _ in range(4)))
    kept = batch.retain.loss.item()
    assert loss("pdu", batch, alpha=2.0) == pytest.approx(2.4**2 + 2 * kept, rel=1e-6)
    settings = trainer.method_settings(METHODS["pdu"], PosttrainConfig(method="pdu"))
    assert methods.multiplier(METHODS["pdu"], settings, 2.5, 2.0) == pytest.approx(1 + 0.4)
    assert methods.multiplier(METHODS["pdu"], settings, 1.0, 4.0) == 0.0
    npo = trainer.method_settings(METHODS["npo"], PosttrainConfig(method="npo"))
    assert methods.multiplier(METHODS["npo"], npo, 9.0, 1.0) == 1.0


def test_rmu_steers_to_one_vector_and_holds_the_rest():
    u = torch.rand(8, generator=torch.Generator().manual_seed(0))
    there = (2 * u / u.norm()).expand(2, 3, 8)
    batch = Batch(
        *(rows(hidden=state) for state in (there, torch.ones(2, 3, 8), there, torch.zeros(2, 3, 8)))
    )
    assert loss("rmu", batch) == pytest.approx(
        1.0
    )  # nothing for the forget rows, a unit a dimension for the others


def test_unknown_methods_and_settings_are_named():
    with pytest.raises(UserError, match=r"posttrain.method=ngo: .* did you mean 'npo'"):
        methods.find("ngo")
    with pytest.raises(
        UserError, match=r"posttrain.settings.bta=1.0: npo has no such setting; it has gamma, alpha, beta"
    ):
        trainer.method_settings(METHODS["npo"], PosttrainConfig(method="npo", settings={"bta": 1.0}))


def test_texts_come_round_each_once_and_ranks_share_a_step():
    assert sorted(np.concatenate([texts.drawn(6, step, 4, 1) for step in range(3)]).tolist()) == sorted(
        2 * list(range(6))
    )
    windows = np.arange(8 * 5).reshape(8, 5)
    set_ = texts.Texts(windows, np.full(8, 3), np.zeros(8, int))
    step = texts.of_step(set_, set_, 0, rows=8, seed=0, labels="own", vocabulary=100)
    read = [
        batch.tokens[:2, 0].tolist()
        for rank in range(2)
        for batch in step.micro_batches(2, rank, 2, torch.device("cpu"))
    ]
    assert sorted(row for part in read for row in part) == windows[:, 0].tolist()
    (first, *_) = step.micro_batches(2, 0, 1, torch.device("cpu"))
    assert first.loss_mask.sum(1).tolist() == [3] * 4
    assert [kind.counted for kind in step.kinds] == [24, 24]


@pytest.mark.parametrize("used", [(True, False), (False, True)])
def test_a_set_whose_loss_has_no_weight_gets_no_rows(used):
    forget, retain = (
        texts.Texts(first + np.arange(8 * 5).reshape(8, 5), np.full(8, 3), np.zeros(8, int))
        for first in (0, 100)
    )
    step = texts.of_step(forget, retain, 0, rows=8, seed=0, labels="random", vocabulary=9, used=used)
    batches = list(step.micro_batches(2, 0, 1, torch.device("cpu")))
    assert [batch.tokens.shape for batch in batches] == [(2, 4)] * 4
    read = torch.cat([batch.tokens[:, 0] for batch in batches])
    assert sorted(read.tolist()) == (forget if used[0] else retain).windows[:, 0].tolist()
    labels = torch.cat([batch.labels for batch in batches])
    assert (labels < 9).all() if used[0] else (labels >= 100).all()  # random ones are the forget rows' alone


def test_one_of_the_two_losses_has_a_weight():
    none = PosttrainConfig(method="npo", settings={"gamma": 0.0, "alpha": 0.0})
    with pytest.raises(UserError, match="gamma and alpha, the weights of the two losses, are both 0"):
        trainer.used_sets(METHODS["npo"], trainer.method_settings(METHODS["npo"], none))
    # A multiplier that is 0 now may rise.
    assert trainer.used_sets(METHODS["pdu"], {"gamma": 1.0, "alpha": 0.0}) == (True, True)
    assert trainer.used_sets(METHODS["relearn"], {"gamma": 1.0, "alpha": 0.0}) == (True, False)
    assert trainer.used_sets(METHODS["finetune"], {"gamma": 0.0, "alpha": 1.0}) == (False, True)


def test_a_text_without_a_sensitive_segment_is_sensitive_as_a_whole():
    two = texts.of_rows([(np.arange(1, 6), 0), (np.arange(1, 4), 0)], 6, eod=0)
    assert two.segment_mask.tolist() == two.mask.tolist()
    marked = texts.Texts(two.windows, two.lengths, two.starts, np.zeros((2, 6), bool))
    marked.segments[0, 3:6] = True  # the last one is beyond its text
    assert marked.segment_mask.tolist() == [[0, 0, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0]]
    assert marked.take(np.array([1, 0])).segment_mask.tolist() == marked.segment_mask[::-1].tolist()


def test_a_refusal_takes_the_place_of_the_second_half_of_an_item():
    item = texts.of_rows([(np.arange(1, 7), 0)], 8, eod=0)
    halved = texts.answers(item, 0.5)
    refusal = texts.refused(halved, [50, 51], 0)
    assert refusal.windows.tolist() == [[0, 1, 2, 3, 50, 51, 0, 0, 0]]
    assert halved.mask.tolist() == [[0, 0, 0, 1, 1, 1, 0, 0]]
    assert refusal.mask.tolist() == [[0, 0, 0, 1, 1, 1, 0, 0]]
    step = texts.of_step(halved, halved, 0, refusals=refusal, rows=1, seed=0, labels="own", vocabulary=100)
    (batch,) = step.micro_batches(1, 0, 1, torch.device("cpu"))
    assert batch.tokens[:, 4].tolist() == [4, 4, 50]


LOW_RANK = """
import torch
from palimpsest.pretrain import chunks, parallel
from palimpsest.pretrain.config import ModelConfig, OptimizerConfig, ParallelConfig, RuntimeConfig, TrainConfig
from palimpsest.pretrain.posttraining import low_rank
from palimpsest.pretrain.settings import Settings


def main():
    settings = Settings(
        model=ModelConfig(name="m", layers=2, hidden=16, heads=2, ffn=24),
        optimizer=OptimizerConfig(learning_rate=1e-3, min_learning_rate=1e-3, warmup_steps=0, schedule="constant"),
        train=TrainConfig(
            steps=1, global_batch_size=2, micro_batch_size=2, sequence_length=12, seed=1, checkpoint_every=1,
            precision="fp32",
        ),
        parallel=ParallelConfig(),
    )
    ids = torch.randint(0, 100, (2, 12), generator=torch.Generator().manual_seed(0))
    places = torch.arange(12).expand(2, -1)
    with parallel.start(ParallelConfig(), RuntimeConfig(device="cpu")) as world, torch.no_grad():
        (gpt,) = chunks.build(settings, world, 100)
        own = gpt(ids, places, None)
        low_rank.adapt(gpt, 3, 0, world)
        assert torch.equal(gpt(ids, places, None), own)
        trained = [name for name, weight in gpt.named_parameters() if weight.requires_grad]
        assert len(trained) == 2 * 4 * 2
        for name, weight in gpt.named_parameters():
            if name.endswith(low_rank.B):
                weight.normal_(std=0.1)
        changed = gpt(ids, places, None)
        with low_rank.merged([gpt]):
            state = {name: value.clone() for name, value in gpt.state_dict().items() if value is not None}
        (plain,) = chunks.build(settings, world, 100)
        plain.load_state_dict(state)
        assert (changed - own).abs().max() > 0.01
        torch.testing.assert_close(plain(ids, places, None), changed, rtol=1e-4, atol=1e-5)
        assert torch.equal(gpt(ids, places, None), changed)
        print("same")


if __name__ == "__main__":
    main()
"""


def test_an_update_of_low_rank_adds_what_is_saved_and_nothing_before_the_first_step(tmp_path):
    script = tmp_path / "low_rank.py"
    script.write_text(LOW_RANK)
    status, out = warm.run([str(script)], tmp_path)
    assert status == 0, out
    assert out.splitlines()[-1] == "same"
