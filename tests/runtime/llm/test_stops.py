"""Stop strings, however the text is cut into pieces, end it where a search of the whole text would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.llm.stops import StopFilter


@given(st.lists(st.text("ab\n", max_size=4), max_size=12), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_any_cut_gives_the_text_before_the_first_stop(pieces, stops):
    filter_, text = StopFilter(stops), "".join(pieces)
    out = "".join(filter_.push(piece) for piece in pieces)
    if not filter_.stopped:
        out += filter_.finish()
    first = min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
    # a stop that begins earlier but ends in a later piece than another is met later
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert filter_.stopped == bool(ends)
    assert out == text if first is None else text.startswith(out) and len(out) >= first


def test_nothing_of_a_stop_is_shown_before_it_is_decided():
    one = StopFilter(["</answer>"])
    assert [one.push(piece) for piece in ("yes </an", "imal> no </answe", "r> more", "x")] == ["yes ", "</animal> no ", "", ""]
    assert one.stopped


def test_what_was_held_back_comes_at_the_end():
    one = StopFilter(["stop"])
    assert one.push("a st") + one.finish() == "a st"
