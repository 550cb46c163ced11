"""``launch/plan.py power=true``: what a design can show, before anything is prepared."""

import pytest

from tests.conftest import SMALL, Workplace


def figures(lines, arm):
    (line,) = [line for line in lines if line.startswith(f"  {arm} ")]
    return [
        float(word.replace(",", "")) for word in line.removeprefix(f"  {arm} ").split()[:6] if word != "more"
    ]


def test_hubbles_wikipedia_arms(tmp_path):
    """Against 759 controls 759, 379, 152 and 76 items show effects of .144, .176, .249 and .338; with alpha divided by
    the five arms .176, .215, .304 and .412. An effect of .2 takes 393 items an arm, or 198 pairs."""
    done = Workplace(tmp_path, SMALL).ok("plan", "power=true", "effect=0.2", "insertion=hubble")
    assert "biographies: 2,500 items are never inserted" in done.lines
    lines = done.lines[done.lines.index("passages: 759 items are never inserted") :]
    expected = {
        1: (759, 0.144, 0.176),
        16: (379, 0.176, 0.215),
        64: (152, 0.249, 0.304),
        256: (76, 0.338, 0.412),
    }
    for dose, (items, effect, corrected) in expected.items():
        found = figures(lines, f"dose {dose}")
        assert found[0] == items
        assert found[1:3] == pytest.approx([effect, corrected], abs=1.1e-3)  # printed with three digits
    assert figures(lines, "dose 64")[4] == pytest.approx(0.05, abs=5e-4)  # 152 items an arm tell .05 from 0
    # 759 controls: more than 246 treated (what 4:1 takes) and fewer than 393 (what 1:1 takes) show an effect of .2.
    assert 246 < figures(lines, "dose 1")[5] < 393
    assert (
        "an effect of 0.2 takes 394 items with as many controls, or 199 items against their own twins"
        in done.out
    )
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
