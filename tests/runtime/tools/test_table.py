from __future__ import annotations

import pytest

from runtime.tools.table import size, table


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.5, "1.0 KB"),
        (1536, "1.5 KB"),
        (999_499, "999.5 KB"),
        (999_500, "1.0 MB"),
        (25_200_000, "25.2 MB"),
        (1.5e9, "1.5 GB"),
        (2e12, "2000.0 GB"),
    ],
)
def test_bytes_are_shown_in_powers_of_1000(count, shown):
    assert size(count) == shown


def test_columns_are_as_wide_as_their_widest_cell_and_some_flush_right():
    shown = table(["stage", "s", ""], [["a", "10.25", "note"], ["longer", "3", ""]], right=(1,))
    assert shown.splitlines() == [
        "stage       s",
        "──────  ─────  ────",
        "a       10.25  note",
        "longer      3",
    ]
