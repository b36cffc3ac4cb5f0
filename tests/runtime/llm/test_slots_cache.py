"""Which slot a prompt takes, and what of its cache is kept."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from runtime.llm.slots import PrefixCache, common


def opened(*filled: list[int], lengths: list[int] | None = None) -> PrefixCache:
    """Slots whose caches hold these keys; they were used from the last to the first."""
    cache = PrefixCache(SimpleNamespace(slots=len(filled), lengths=[0] * len(filled)))
    for slot in reversed(range(len(filled))):
        cache.take([slot], [slot])
    cache.filled, cache.decoder.lengths = list(filled), lengths or list(map(len, filled))
    return cache


@pytest.mark.parametrize(
    ("keys", "slot", "cached"),
    [
        ([1, 2, 3, 8], 0, 3),  # slot 0 holds 1 2 3 4, slot 1 holds 1 2 6 7
        ([1, 2, 3, 4, 5], 0, 4),
        ([1, 2, 3, 4], 0, 3),  # the last position is computed, for its logits
        ([1, 2, 3], 1, 2),  # of slot 0 only two would remain, half of it: the slot that was idle for longest is taken
        ([1, 2, 6, 8], 1, 3),
        ([1, 2, 8, 8], 1, 2),
        ([9, 9], 1, 0),
    ],
)
def test_a_slot_is_taken_where_most_of_its_cache_is_the_prompt_s_beginning(keys, slot, cached):
    cache = opened([1, 2, 3, 4], [1, 2, 6, 7])
    assert cache.take(keys, [0, 1]) == (slot, cached)
    assert cache.decoder.lengths[slot] == cached and cache.filled[slot] == keys[:cached]
    assert cache.decoder.lengths[1 - slot] == 4
    assert cache.take([9, 9], [0, 1])[0] == 1 - slot  # the other one has been idle for longer now


def test_a_slot_that_is_not_free_is_not_taken():
    assert opened([1, 2, 3, 4], [1, 2, 6, 7]).take([1, 2, 3, 4, 5], [1]) == (1, 2)


def test_no_more_is_kept_than_the_cache_holds():
    cache = opened([1, 2, 3, 4], lengths=[3])
    assert cache.take([1, 2, 3, 4, 5], [0]) == (0, 3) and cache.filled == [[1, 2, 3]]


def test_slots_that_were_never_used_are_taken_in_turn():
    cache = PrefixCache(SimpleNamespace(slots=3, lengths=[0] * 3))
    assert [cache.take([key], [0, 1, 2])[0] for key in (7, 8, 9, 10)] == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("held", "wanted", "count"),
    [([], [], 0), ([], [1], 0), ([1], [], 0), ([1, 2], [1], 1), ([1], [1, 2], 1), ([1, 2, 3], [1, 9, 3], 1), ([9], [1], 0), ([1, 2], [1, 2], 2),
     ([("a", 0)], [("b", 0)], 0), ([("a", 0), ("a", 1)], [("a", 0), ("a", 2)], 1)],
)  # fmt: skip
def test_what_two_prompts_begin_with(held, wanted, count):
    assert common(held, wanted) == count
