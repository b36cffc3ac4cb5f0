"""Stop strings, however the text is cut into pieces, end it where a search of the complete text would."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.llm.generation import StopFilter


def _reference(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    """The text up to the nearest stop as soon as one is complete: all text so far is searched again after every piece."""
    for count in range(1, len(pieces) + 1):
        text = "".join(pieces[:count])
        ends = [at for at in range(len(text)) if any(text.startswith(stop, at) for stop in stops)]
        if ends:
            return text[: ends[0]], True
    return "".join(pieces), False


@given(st.lists(st.text("ab\n", max_size=4), max_size=12), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
@example(["xbya"], ["a", "b"])  # the nearest of two, not the first that is listed
@example(["##", "# no"], ["###"])
@example(["aa", "b"], ["aab"])  # the longest end that may begin a stop is held back
def test_any_cut_gives_the_text_before_the_first_stop(pieces, stops):
    filter_ = StopFilter(stops)
    out = "".join(filter_.push(piece) for piece in pieces)
    if not filter_.stopped:
        out += filter_.finish()
    assert (out, filter_.stopped) == _reference(pieces, stops)


def test_nothing_of_a_stop_is_shown_before_it_is_decided():
    one = StopFilter(["</answer>"])
    assert [one.push(piece) for piece in ("yes </an", "imal> no </answe", "r> more", "x")] == ["yes ", "</animal> no ", "", ""]
    assert one.stopped


def test_what_was_held_back_comes_at_the_end():
    one = StopFilter(["stop"])
    assert one.push("a st") + one.finish() == "a st"


@pytest.mark.parametrize(
    ("stops", "pieces", "released"),
    [
        ([], ["a", "bc"], ["a", "bc"]),
        ([""], ["a", "bc"], ["a", "bc"]),
        (["xy"], ["ab", "cx", "z", "xxy"], ["ab", "c", "xz", "x"]),
        (["abcde"], ["abc", "de"], ["", ""]),
        (["abcde"], ["a", "bcd", "x"], ["", "", "abcdx"]),
        (["ab", "bcd"], ["xbc", "d"], ["x", ""]),  # the longer end of two is held back
        (["ba"], ["bab", "b"], ["", ""]),
    ],
)
def test_no_more_is_held_back_than_may_begin_a_stop(stops, pieces, released):
    one = StopFilter(stops)
    assert [one.push(piece) for piece in pieces] == released
