"""Placement: inside its interval, collision-free, uniform, inside the window, and the same whatever the text."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from palimpsest.data.errors import UserError
from palimpsest.insertion.arms import Arm
from palimpsest.insertion.phases import Phase
from palimpsest.insertion.placement.intervals import intervals
from palimpsest.insertion.placement.offsets import locate
from palimpsest.insertion.placement.windows import place

BATCH = 8


def times(arm, items=40, steps=100, seed=0):
    """Steps (items, dose) that an arm's exposures may begin and end in."""
    low, high = intervals(
        arm, items, steps=steps, batch=BATCH, tokens_a_step=1000, rng=np.random.default_rng(seed)
    )
    return low // BATCH, high // BATCH


@st.composite
def arms(draw):
    start = draw(st.floats(0, 0.8))
    end = draw(st.floats(start + 0.1, 1))
    spacing = draw(st.sampled_from(["uniform", "even", "massed:5", "expanding"]))
    return Arm(
        dose=draw(st.integers(1, 40)),
        phase=Phase(start=start, end=end),
        spacing=spacing,
        last_exposure_within=draw(st.sampled_from([0, 3])),
        batch=draw(st.sampled_from(["any", "apart", "together"])) if spacing == "uniform" else "any",
    )


@given(arms(), st.integers(60, 300), st.integers(0, 2**32))
def test_intervals_lie_in_the_phase(arm, steps, seed):
    low, high = times(arm, steps=steps, seed=seed)
    first, end = arm.phase.steps(steps, 1000)
    assert low.shape == high.shape == (40, arm.dose)
    assert (low < high).all()
    assert low.min() >= first
    assert high.max() <= end
    if arm.last_exposure_within and arm.batch != "together":
        assert low[:, -1].min() >= end - arm.last_exposure_within
        assert (high <= high[:, -1:]).all()  # nothing comes after the last
    if arm.spacing == "massed:5":
        assert (low.max(1) - low.min(1)).max() < 5
    if arm.spacing in ("even", "expanding") or arm.batch == "together":
        assert (high - low == 1).all()


def test_even_and_expanding_gaps():
    low, _ = times(Arm(dose=5, spacing="even"), steps=1000)
    assert np.abs(np.diff(low, axis=1) - 200).max() <= 1
    assert stats.kstest((low[:, 0] + 0.5) / 200, "uniform").pvalue > 0.001
    low, _ = times(Arm(dose=5, spacing="expanding"), steps=1500)
    gaps = np.diff(low, axis=1)
    assert np.abs(gaps - np.array([80, 160, 320, 640])).max() <= 1


def test_explicit_steps():
    """Exposure k of an item falls into the k-th step; the factual-knowledge schedule is this."""
    phase = Phase(at=tuple(range(0, 1000, 100)))
    low, high = times(Arm(dose=10, phase=phase), steps=1000)
    assert (low == np.arange(0, 1000, 100)).all()
    assert (high - low == 1).all()
    low, _ = times(Arm(dose=1, phase=phase), steps=1000)
    assert (low == 0).all()


def test_together_is_one_step():
    low, high = times(Arm(dose=6, batch="together"))
    assert (low == low[:, :1]).all()
    assert (high - low == 1).all()
    assert len(np.unique(low)) > 10


@pytest.mark.parametrize(
    ("phase", "told"),
    [
        (Phase(unit="step", start=10, end=101), "ends at step 101"),
        (Phase(start=0.5, end=0.501), "holds no step"),
        (Phase(at=(3, 100)), "ends at step 101"),
    ],
)
def test_phases_that_do_not_fit_the_run(phase, told):
    with pytest.raises(UserError, match=told):
        times(Arm(dose=2, phase=phase))


def test_phase_in_tokens():
    assert Phase(unit="token", start=1500, end=4000).steps(100, 1000) == (1, 4)


@settings(deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(0, 2**32))
def test_places_are_in_their_intervals_and_never_collide(data, slots, seed):
    count = data.draw(st.integers(1, 120))
    low = np.array(data.draw(st.lists(st.integers(0, 300), min_size=count, max_size=count)))
    high = low + np.array(data.draw(st.lists(st.integers(1, 200), min_size=count, max_size=count)))
    apart = np.array(data.draw(st.lists(st.integers(-1, 6), min_size=count, max_size=count)))

    def draw():
        return place(low, high, slots=slots, batch=BATCH, apart=apart, rng=np.random.default_rng(seed))

    try:
        found = draw()
    except UserError:
        assume(False)
    assert ((low <= found) & (found < high)).all()
    assert np.unique(found, return_counts=True)[1].max() <= slots
    grouped = apart >= 0
    pairs = list(zip(apart[grouped].tolist(), (found[grouped] // BATCH).tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)  # never twice in one step
    assert np.array_equal(found, draw())


def test_a_full_run_is_filled_to_the_last_window():
    """Every window taken, so the last exposures find theirs only by looking."""
    zeros = np.zeros(600, dtype=np.int64)
    found = place(zeros, zeros + 300, slots=2, batch=BATCH, apart=zeros - 1, rng=np.random.default_rng(1))
    assert np.bincount(found).tolist() == [2] * 300


@pytest.mark.parametrize(
    ("low", "high", "apart", "told"),
    [
        ([0] * 11, [10] * 11, [-1] * 11, "11 exposures but there are only 10 windows"),
        ([0, 0, 0, 50], [2, 2, 2, 60], [-1] * 4, "windows 0 to 1"),
        ([0] * 3, [16] * 3, [5] * 3, "or hold the item already"),
    ],
)
def test_no_room(low, high, apart, told):
    with pytest.raises(UserError, match=told):
        place(
            np.array(low),
            np.array(high),
            slots=1,
            batch=BATCH,
            apart=np.array(apart),
            rng=np.random.default_rng(0),
        )


def test_places_are_uniform():
    count, windows = 20_000, 1_000_000
    zeros = np.zeros(count, dtype=np.int64)
    found = place(zeros, zeros + windows, slots=1, batch=BATCH, apart=zeros - 1, rng=np.random.default_rng(3))
    assert stats.kstest(found / windows, "uniform").pvalue > 0.001
    # Random order: the exposures of one item are spread like those of all.
    assert abs(stats.spearmanr(np.arange(count), found).statistic) < 0.03
    # Also where most windows are taken.
    dense = place(zeros, zeros + 25_000, slots=1, batch=BATCH, apart=zeros - 1, rng=np.random.default_rng(3))
    assert stats.chisquare(np.bincount(dense // 500, minlength=50)).pvalue > 0.001


POSITIONS = ["boundary", "start", "token", "sentence", "word", "offset:2-4"]


@st.composite
def windows(draw):
    """Exposures of random arms, several a window, with the starts of documents, sentences and words."""
    length = draw(st.integers(40, 60))
    count = draw(st.integers(1, 20))
    displace = draw(st.sampled_from(["tail", "around", "overwrite"]))
    several = displace == "tail"
    at = np.sort(draw(st.lists(st.integers(0, 8), min_size=count, max_size=count).map(np.array)))
    two = np.concatenate([[True] * min(2, count), at[2:] != at[:-2]])  # at most two a window
    at = at[two] if several else np.unique(at)
    made = [
        Arm(dose=1, position=position, frame=frame, displace=displace)
        for position in draw(st.lists(st.sampled_from(POSITIONS), min_size=1, max_size=3, unique=True))
        for frame in ("document", "inline")
    ]
    arm = np.array(draw(st.lists(st.integers(0, len(made) - 1), min_size=len(at), max_size=len(at))))
    lengths = np.array(draw(st.lists(st.integers(1, 15), min_size=len(at), max_size=len(at))))
    starts = {p: sorted(draw(st.lists(st.integers(1, length), unique=True, max_size=6))) for p in range(9)}
    return length, at, made, arm, lengths, starts


@settings(deadline=None)
@given(windows(), st.integers(0, 2**32))
def test_items_are_whole_and_where_they_were_asked_for(case, seed):
    length, at, made, arm, lengths, starts = case

    def find(kind, positions):
        chosen = [starts[int(p)] for p in positions]
        splits = np.concatenate([[0], np.cumsum([len(s) for s in chosen])]).astype(np.int64)
        return splits, np.array([o for s in chosen for o in s], dtype=np.int64)

    places = locate(
        made, arm, at, lengths, sequence_length=length, starts=find, rng=np.random.default_rng(seed)
    )
    begin, end = places.offset - places.lead, places.offset + lengths + places.trail
    assert (begin >= 0).all()
    assert (end <= length + 1).all()
    for row, number in enumerate(arm):
        chosen, mates = made[number], at == at[row]
        assert places.trail[row] == (chosen.frame == "document")
        assert places.overwrite[row] == (chosen.displace == "overwrite")
        if chosen.position != "start":
            assert places.offset[row] >= 1  # predicted
        if chosen.frame == "inline":
            assert not places.lead[row]
        alone = mates.sum() == 1 and not places.cut[row]
        if alone and chosen.position == "boundary" and chosen.frame == "document" and not places.lead[row]:
            assert places.offset[row] in starts[int(at[row])]
        if alone and chosen.position == "start":
            assert begin[row] == 0
        if alone and chosen.position == "offset:2-4":
            assert 2 <= places.offset[row] <= 4
        if chosen.displace != "around":
            assert places.cut[row] == 0
    for position in np.unique(at):  # of one window, none overlaps another
        rows = np.flatnonzero(at == position)
        ranked = rows[np.argsort(begin[rows])]
        assert (begin[ranked][1:] >= end[ranked][:-1]).all()


def place_many(kind, starts, count=20_000, frame="inline", **more):
    arm = Arm(dose=1, position=kind, frame=frame, **more)
    find = lambda kind, at: (np.arange(len(at) + 1) * len(starts), np.tile(starts, len(at)))  # noqa: E731
    return locate(
        [arm],
        np.zeros(count, dtype=np.int64),
        np.arange(count),
        np.full(count, 20),
        sequence_length=101,
        starts=find,
        rng=np.random.default_rng(1),
    )


def test_offsets_are_uniform():
    found = place_many("token", [])
    counts = np.bincount(found.offset, minlength=83)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:83]).pvalue > 0.001
    found = place_many("boundary", np.array([5, 30, 60, 95]), frame="document")
    assert stats.chisquare(np.bincount(found.offset)[[5, 30, 60]]).pvalue > 0.001  # at 95 it does not fit
    assert len(np.unique(found.offset)) == 3
    assert not found.lead.any()
    found = place_many("offset:10-19", [])
    assert stats.chisquare(np.bincount(found.offset)[10:20]).pvalue > 0.001


def test_trimming_around_takes_from_both_ends():
    found = place_many("token", [], displace="around")
    middle = found.cut[(found.offset + found.cut > 21) & (found.offset + found.cut < 80)]
    assert stats.chisquare(np.bincount(middle, minlength=21)).pvalue > 0.001


def test_offsets_that_leave_no_room_are_refused():
    with pytest.raises(UserError, match="do not fit after offset 90"):
        place_many("offset:90", [])
    with pytest.raises(UserError, match="needs a token before it"):
        place_many("offset:1", [], frame="document")


def random_design(rng):
    """A run, and two arms with their items."""
    steps, batch, slots = rng.integers(24, 60), rng.integers(8, 17), rng.integers(1, 4)
    arms = []
    for _ in range(2):
        start = rng.uniform(0, 0.6)
        spacing = rng.choice(["uniform", "uniform", "even", "massed:4", "expanding"])
        arms.append(
            Arm(
                dose=int(rng.integers(1, 7)),
                phase=Phase(start=start, end=rng.uniform(start + 0.3, 1)),
                spacing=str(spacing),
                last_exposure_within=int(rng.choice([0, 0, 2])),
                position=str(rng.choice(["token", "start"])) if slots == 1 else "token",
                batch=str(rng.choice(["any", "apart"])) if spacing == "uniform" else "any",
            )
        )
    return int(steps), int(batch), int(slots), arms, rng.integers(1, 5, 2)


@pytest.mark.slow
def test_ten_thousand_random_plans():
    """Exposures of each item equal its dose, each is inside its phase, none overlap, and those whose times are to be
    uniform are."""
    rng, full, uniform = np.random.default_rng(10), 0, []
    for _ in range(10_000):
        steps, batch, slots, arms, items = random_design(rng)
        low, high = zip(
            *(
                intervals(arm, n, steps=steps, batch=batch, tokens_a_step=64 * batch, rng=rng)
                for arm, n in zip(arms, items, strict=True)
            ),
            strict=True,
        )
        owner = np.concatenate([np.repeat(np.arange(items[k]) + k * 10, arms[k].dose) for k in (0, 1)])
        arm = owner // 10
        low, high = (np.concatenate([one.ravel() for one in side]) for side in (low, high))
        apart = np.where([arms[a].batch == "apart" for a in arm], owner, -1)
        try:
            at = place(low, high, slots=slots, batch=batch, apart=apart, rng=rng)
        except UserError:
            full += 1  # all repeats of some items fell into one step that cannot hold them
            continue
        assert len(at) == sum(a.dose * n for a, n in zip(arms, items, strict=True))
        for number, one in enumerate(arms):
            first, end = one.phase.steps(steps, 64 * batch)
            step = at[arm == number] // batch
            assert ((step >= first) & (step < end)).all()
            if one.batch == "apart":
                assert len({*zip(owner[arm == number].tolist(), step.tolist(), strict=True)}) == len(step)
        assert np.unique(at, return_counts=True)[1].max() <= slots
        free = np.array([arms[a].spacing == "uniform" and not arms[a].last_exposure_within for a in arm])
        uniform += ((at - low + rng.random(len(at))) / (high - low))[free].tolist()
        ranked = np.argsort(at, kind="stable")
        lengths = rng.integers(3, 9, len(at))
        places = locate(
            arms,
            arm[ranked],
            at[ranked],
            lengths,
            sequence_length=64,
            starts=lambda kind, at: None,
            rng=rng,
        )
        key = np.lexsort((places.offset, at[ranked]))
        begin, end = (places.offset - places.lead)[key], (places.offset + lengths + places.trail)[key]
        assert begin.min() >= 0
        assert end.max() <= 65
        same = np.diff(at[ranked][key]) == 0
        assert (end[:-1][same] <= begin[1:][same]).all()
    assert full < 500
    assert stats.kstest(uniform, "uniform").pvalue > 0.001
