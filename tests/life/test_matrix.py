"""The compatibility matrix, cell by cell: a seeded slice, or all of it with ``EQUIDIAL_MATRIX=whole``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from tests.life.distributed import Pair
from tests.life.matrix import FEATURES, PAGE, Feature, carry_out, seeded_slice, whole
from tests.life.networks import NETWORKS

WHOLE = os.environ.get("EQUIDIAL_MATRIX") == "whole"
CHOSEN = whole() if WHOLE else seeded_slice()


@pytest.fixture(scope="session")
def pair() -> Iterator[Pair]:
    """Two processes, started when a cell first needs them."""
    found = Pair()
    yield found
    found.close()


@pytest.mark.parametrize(("feature", "network"), CHOSEN, ids=[f"{f.title}-{n}" for f, n in CHOSEN])
def test_cell(feature: Feature, network: str, pair: Pair) -> None:
    cell = carry_out(feature, network, pair)
    expected = {"refused" if feature.refused else "works"} | ({"not applicable"} if WHOLE else set())
    assert cell.mark in expected, cell.text


def test_the_slice_meets_every_row_and_every_column() -> None:
    chosen = seeded_slice()
    assert [feature for feature, _ in chosen] == list(FEATURES)
    assert {name for _, name in chosen} == set(NETWORKS)


def test_the_page_has_every_row_and_column() -> None:
    """Else ``python -m tests.life.matrix`` has to write it again."""
    text = PAGE.read_text()
    header, *rows = re.findall(r"^\| ?(.*) \|$", text, re.MULTILINE)
    assert header.removeprefix("| ").split(" | ") == list(NETWORKS)
    assert [row.split(" | ")[0] for row in rows] == [feature.title for feature in FEATURES]
    marks = [mark for row in rows for mark in row.split(" | ")[1:]]
    assert len(marks) == len(FEATURES) * len(NETWORKS)
    assert all(mark[0] in "✓r–✗" for mark in marks)
    assert f"{sum(mark[0] == '✗' for mark in marks)} fails" in text, "what fails is told"
