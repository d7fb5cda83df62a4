"""The compatibility matrix, cell by cell: a seeded slice, or all of it with ``EQUIDIAL_MATRIX=whole``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

import pytest

from tests.life.distributed import Pair, learned_in_data_parallel, learned_while_sharded
from tests.life.matrix import FEATURES, PAGE, Feature, carry_out, seeded_slice, whole
from tests.life.networks import NETWORKS, Network

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


@pytest.mark.parametrize("law", [learned_in_data_parallel, learned_while_sharded])
def test_learned_dials_in_two_processes(law: Callable[[Network], str], pair: Pair) -> None:
    """No row of the matrix: they are nothing that an architecture could change."""
    assert "do: " in str(pair.run(law, "plain CNN"))


def test_the_slice_meets_every_row_and_every_column() -> None:
    chosen = seeded_slice()
    assert [feature for feature, _ in chosen] == list(FEATURES)
    assert {name for _, name in chosen} == set(NETWORKS)


def test_the_page_has_every_row_column_and_law_and_no_failure() -> None:
    """Else ``python -m tests.life.matrix`` has to write it again."""
    text = PAGE.read_text()
    header, *rows = re.findall(r"^\| ?(.*) \|$", text, re.MULTILINE)
    assert header.removeprefix("| ").split(" | ") == list(NETWORKS)
    assert [row.split(" | ")[0] for row in rows] == [feature.title for feature in FEATURES]
    for feature, row in zip(FEATURES, rows, strict=True):
        marks = row.split(" | ")[1:]
        assert len(marks) == len(NETWORKS)
        assert {mark[0] for mark in marks} <= {"r" if feature.refused else "✓", "–"}, feature.title
        assert f"* **{feature.title}.** {' '.join((feature.law.__doc__ or '').split())}\n" in text
