"""``launch/plan.py power=true``: what a design can show, before anything is prepared."""

import pytest

from tests.conftest import SMALL, Workplace


def figures(lines, arm):
    (line,) = [line for line in lines if line.startswith(f"  {arm} ")]
    words = line.removeprefix(f"  {arm} ").replace("more controls", "inf").split()
    return [float(word.replace(",", "")) for word in words]


def test_hubbles_wikipedia_arms(tmp_path):
    """Against 759 controls n items show ``(1.645 + 0.842) sqrt(1/n + 1/759)``, one-sided; an effect of .2 takes 310."""
    done = Workplace(tmp_path, SMALL).ok("plan", "power=true", "effect=0.2", "insertion=hubble")
    assert "biographies: 2,500 items are never inserted" in done.lines
    lines = done.lines[done.lines.index("passages: 759 items are never inserted") :]
    for dose, items in {1: 759, 16: 379, 64: 152, 256: 76}.items():
        found = figures(lines, f"dose {dose}")
        assert found[0] == items
        assert found[1] == pytest.approx(2.4865 * (1 / items + 1 / 759) ** 0.5, abs=2e-3)
    # Two hits of 152 and none of 759 are called; a rate of .0196 gives two hits with probability .8.
    assert pytest.approx(0.8, abs=2e-3) == 1 - (1 - 0.0196) ** 152 - 152 * 0.0196 * (1 - 0.0196) ** 151
    assert figures(lines, "dose 64")[2] == pytest.approx(0.0196, abs=6e-4)
    # As many items as controls, 310, show an effect of .2; against 759 controls fewer do.
    assert 150 < figures(lines, "dose 1")[3] < 310
    assert "an effect of 0.2 standard deviations takes 310 items with as many controls" in done.out
    assert not (tmp_path / "runs").exists()


def test_small_designs_and_mistakes(tmp_path):
    place = Workplace(tmp_path, SMALL)
    done = place.ok("plan", "power=true", "insertion.items_per_dose=2")
    assert figures(done.lines, "dose 4")[1] > 3  # two items show next to nothing
    assert done.out.count("more controls") == 2
    assert "passages, ghost_sentences" in done.out or "ghost_sentences, passages" in done.out
    done = place.run("plan", "power=true", "effect=large")
    assert (done.status, len(done.lines)) == (2, 1)
    assert "effect=large must be a number" in done.out
