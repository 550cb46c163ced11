"""Guesses: what has been said before is guessed again, as far as that pays."""

import numpy as np
import pytest

from palimpsest.analysis.guesses import CONTEXT, MOST, Guesses


def some(*numbers):
    return np.array(numbers, np.int64)


def speak(guesses, text):
    """One row that goes on as ``text`` does after its first ``CONTEXT`` tokens: (steps, tokens guessed, right ones)."""
    size, steps, tried, hits = CONTEXT, 0, 0, 0
    while size < len(text):
        guess, kind, count = guesses.guess(text[None], some(size), some(len(text) - size - 1))
        line = text[size : size + count[0]]
        right = int((guess[0, : len(line)] == line).cumprod().sum())
        guesses.learn(text[None], some(size), some(right + 1), guess, kind, count)
        size, steps, tried, hits = size + right + 1, steps + 1, tried + count[0], hits + right
    return steps, int(tried), hits


def ahead(guesses, known, room=MOST):
    """What one row is guessed to go on as."""
    guess, _, count = guesses.guess(known[None], some(len(known)), some(room))
    return guess[0, : count[0]].tolist()


def random(seed, count, vocabulary=1000):
    return np.random.default_rng(seed).integers(0, vocabulary, count)


def paid():
    """Guesses that were right before: of texts that were said, of hints, of phrases after other beginnings."""
    guesses = Guesses()
    for seed in range(100, 110):
        text, hint = random(seed, 60), random(seed + 100, 60)
        guesses.hint(hint)
        phrase = np.concatenate([random(seed + 200, CONTEXT), text[30:]])
        for each in (text, hint, phrase):
            speak(guesses, each)
    return guesses


def test_nothing_is_guessed_where_nothing_was_said():
    assert ahead(Guesses(), random(0, CONTEXT)) == []


def test_a_history_that_repeats_itself_is_guessed_ahead():
    guesses, text = Guesses(), np.tile(random(0, 10), 30)
    steps, tried, hits = speak(guesses, text)
    assert steps < (len(text) - CONTEXT) / 5
    assert hits > 0.9 * tried
    found = ahead(guesses, text[:100])
    assert len(found) > MOST / 2
    assert found == text[100 : 100 + len(found)].tolist()


def test_what_one_row_said_is_guessed_in_another():
    guesses, first = paid(), random(0, 60)
    speak(guesses, first)
    other = np.concatenate([random(1, 30), first[20:26]])
    found = ahead(guesses, other)
    assert found
    assert found == first[26 : 26 + len(found)].tolist()


def test_rows_are_guessed_each_from_its_own_history():
    guesses, first, second = paid(), random(0, 60), random(1, 60)
    speak(guesses, first)
    speak(guesses, second)
    history = np.stack([second, first])
    guess, _, count = guesses.guess(history, some(30, 40), some(5, 5))
    assert count.min() > 0
    assert guess[0, : count[0]].tolist() == second[30 : 30 + count[0]].tolist()
    assert guess[1, : count[1]].tolist() == first[40 : 40 + count[1]].tolist()


def test_hints_are_guessed_until_the_model_says_otherwise():
    guesses, hint = paid(), random(0, 60)
    guesses.hint(hint)
    found = ahead(guesses, hint[:30])
    assert found
    assert found == hint[30 : 30 + len(found)].tolist()
    later = np.concatenate([hint[:30], random(2, 30)])
    guesses.hint(later)
    assert ahead(guesses, hint[:30])[:1] == later[30:31].tolist()
    said = np.concatenate([hint[:30], random(1, 30)])
    speak(guesses, said)
    guesses.hint(hint)  # again: what was said counts more
    assert ahead(guesses, said[:30])[:1] == said[30:31].tolist()


def test_a_hint_that_is_right_saves_most_steps():
    guesses, hint = Guesses(), random(0, 216)
    guesses.hint(hint)
    steps, _, hits = speak(guesses, hint)
    assert steps < 60
    assert hits == 200 - steps


@pytest.mark.parametrize("room", [0, 1, 2, 5, MOST, MOST + 20])
def test_there_are_never_more_guesses_than_room(room):
    guesses, text = Guesses(), np.tile(random(0, 10), 100)
    speak(guesses, text)
    found = ahead(guesses, text[:100], room)
    assert len(found) == min(room, MOST)


def test_nothing_is_guessed_of_random_tokens_for_long():
    guesses = Guesses()
    text = random(0, 4000, vocabulary=20)  # whose short contexts all return
    _, early, _ = speak(guesses, text[:500])
    _, late, _ = speak(guesses, text[500:])
    assert 0 < early < 250
    assert late < 3500 / 25


def test_hints_that_are_wrong_are_not_followed_for_long():
    guesses, tried = paid(), []
    for k in range(100):
        hint = random(k, 80)
        guesses.hint(hint)
        wrong = hint.copy()
        wrong[CONTEXT::2] += 1000  # every other token is another
        tried.append(speak(guesses, wrong)[1])
    assert sum(tried[:10]) > 5
    assert sum(tried[-10:]) < sum(tried[:10]) / 3


def test_guesses_are_the_same_each_time():
    def run():
        guesses, text = Guesses(), np.concatenate([np.tile(random(0, 10), 20), random(1, 200, vocabulary=5)])
        guesses.hint(random(2, 100))
        counts = speak(guesses, text)
        return counts, guesses.kinds.tolist(), guesses.said.tobytes(), guesses.mark.tobytes()

    assert run() == run()
