"""Step Law's formulas, by logarithms and by what defines them."""

import copy
import math

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from palimpsest.data.errors import UserError
from palimpsest.launch.compose import CONF, build
from palimpsest.pretrain import laws


def composed(*overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build(compose("config", ["+experiment=quickstart", *overrides]))


def test_learning_rate_of_a_billion_weights():
    """N = 1e9, D = 1e11: log10 of the rate is log10 1.79 - 9 * 0.713 + 11 * 0.307 = -2.787."""
    assert math.log10(laws.step_law_learning_rate(1e9, 1e11)) == pytest.approx(-2.78715, abs=1e-5)
    # Twice the weights: 2^-0.713; ten times the tokens: 10^0.307.
    assert laws.step_law_learning_rate(2e9, 1e12) / laws.step_law_learning_rate(1e9, 1e11) == pytest.approx(
        10**0.307 / 2**0.713
    )


def test_batch():
    """D = 1e11: 0.58 * 10^6.281 = 1.108 million tokens."""
    assert laws.step_law_batch_of(1e11 / 1.108e6) == pytest.approx(1.108e6, rel=3e-3)
    steps = 90_000
    own = laws.step_law_batch_of(steps)
    assert own == pytest.approx(0.58 * (steps * own) ** 0.571)  # it is the law's for the tokens it makes


def test_of_a_run(caplog):
    """Nano: 4 layers of 4 * 128^2 + 3 * 128 * 384 + 2 * 128, and a last norm; 450 steps."""
    caplog.set_level("INFO")
    found = composed("optimizer=step_law", "train.global_batch_size=step_law", "train.micro_batch_size=2")
    body = 4 * (4 * 128**2 + 3 * 128 * 384 + 2 * 128) + 128
    batch = found.train.global_batch_size
    wanted = laws.step_law_batch_of(450) / 256
    assert batch % 2 == 0
    assert abs(batch - wanted) <= 1
    rate = 1.79 * body**-0.713 * (450 * batch * 256) ** 0.307
    assert found.optimizer.learning_rate == pytest.approx(rate, rel=5e-3)  # three digits
    assert found.optimizer.min_learning_rate == 1e-5
    told = caplog.text
    assert f"train.global_batch_size={batch}: " in told
    assert (
        f"optimizer.learning_rate={found.optimizer.learning_rate:g}: 1.79 N^-0.713 D^0.307 for N={body:,}"
        in told
    )
    assert "Li et al., 2025, arXiv:2503.04715" in told


def test_batch_given_and_rate_by_law():
    given = composed("optimizer=step_law")
    assert given.train.global_batch_size == 8
    assert 1e-5 < given.optimizer.learning_rate < 0.05


def test_no_other_word_is_a_number():
    with pytest.raises(UserError, match=r"train\.global_batch_size=steplaw"):
        composed("train.global_batch_size=steplaw")
    with pytest.raises(UserError, match=r"optimizer\.law=chinchilla"):
        composed("optimizer.law=chinchilla")


def test_a_setting_that_was_removed_is_named_and_not_stumbled_over():
    """``~optimizer.law`` and the like: with the law chosen, and without."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        whole = compose("config", ["+experiment=quickstart", "optimizer=step_law"])
    for group in ("model", "optimizer", "train"):
        for key in list(whole[group]):
            config = copy.deepcopy(whole)
            OmegaConf.set_struct(config, False)
            del config[group][key]
            line = ""  # none for a setting with a default
            try:
                build(config)
            except UserError as error:
                line = str(error)
            assert not line or str(key) in line, (group, key, line)
