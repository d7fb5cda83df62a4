"""Spaces as they are typed, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from equidial.errors import ArgumentError
from equidial.recipes import Adapt
from equidial.sweeps import Choice, Range, Sweep
from equidial.sweeps._space import build, check_space, read_fixed, read_space


@dataclass(frozen=True)
class Fields:
    output: Path
    rate: float
    seeds: tuple[int, ...] = ()
    count: int = 1
    kind: Literal["a", "b"] = "a"
    text: str = ""
    flag: bool = False
    maybe: float | None = None
    several: tuple[float, ...] = (1.0,)
    where: Path = field(default_factory=Path)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("rate=0:1", Range(0.0, 1.0)),
        ("rate=1e-5:1e-3:log", Range(1e-5, 1e-3, log=True)),
        ("rate=0:1:0.25", Range(0.0, 1.0, step=0.25)),
        ("rate=0.1,0.2", Choice((0.1, 0.2))),
        ("count=1:8:log", Range(1, 8, log=True)),
        ("count=1,2,4", Choice((1, 2, 4))),
        ("kind=a,b", Choice(("a", "b"))),
        ("text=x:y,z", Choice(("x:y", "z"))),
        ("flag=true,false", Choice((True, False))),
        ("maybe=none,0.5", Choice((None, 0.5))),
        ("maybe=0:2", Range(0.0, 2.0)),
        ("several=0:1", Range(0.0, 1.0)),
    ],
)
def test_spaces_are_read(text: str, part: Range | Choice) -> None:
    (found,) = read_space((text,), Fields).values()
    assert found == part
    check_space({text.partition("=")[0]: part}, Fields)


@pytest.mark.parametrize("part", ["0:1", "1e-05:0.001:log", "0:1:0.25", "0.123456789012:1", "1,2,4"])
def test_a_space_is_shown_as_it_is_typed(part: str) -> None:
    """Two workers compare spaces by this text: it must not round."""
    assert str(read_space((f"rate={part}",), Fields)["rate"]) == part


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("rate",), "NAME=LOW:HIGH"),
        (("rate=",), "NAME=LOW:HIGH"),
        (("ratte=0:1",), "closest: 'rate'"),
        (("output=a,b",), "field of Fields"),
        (("seeds=1,2",), "field of Fields"),
        (("rate=0:1", "rate=0:2"), "rate twice"),
        (("rate=0:x",), "write numbers"),
        (("rate=0:1:log:2",), "write numbers"),
        (("rate=1:0",), "low end"),
        (("rate=0:inf",), "low end"),
        (("rate=nan:1",), "low end"),
        (("rate=0:1:log",), "above 0"),
        (("rate=0:1:2",), "step"),
        (("rate=0:1:-1",), "step"),
        (("rate=0.1,0.1",), "twice"),
        (("rate=a,b",), "type float"),
        (("count=0:1.5",), "whole number"),
        (("count=1:9:0.5",), "whole number"),
        (("count=1,2.5",), "type int"),
        (("kind=a,c",), "'a', 'b'"),
        (("kind=0:1",), "'a', 'b'"),
        (("flag=0,1",), "true or false"),
        ((), "an empty space"),
    ],
)
def test_bad_spaces(texts: tuple[str, ...], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        check_space(read_space(texts, Fields), Fields)
    assert message in str(caught.value)


def test_ranges_need_numbers() -> None:
    with pytest.raises(ArgumentError, match="kind is no number"):
        check_space({"kind": Range(0, 1)}, Fields)


def test_fixed_values_have_the_types_of_their_fields() -> None:
    texts = ("rate=3", "several=1,2", "where=a/b", "maybe=none", "flag=true", "text=a=b", "count=2")
    made = build(Fields, read_fixed(texts, Fields), 7, Path("there"))
    assert made == Fields(Path("there"), 3.0, (7,), 2, "a", "a=b", True, None, (1.0, 2.0), Path("a/b"))


def test_one_value_of_a_tuple_field_is_a_tuple_of_one() -> None:
    assert build(Fields, {"rate": 1.0, "several": 0.5}, 0, Path()).several == (0.5,)


def test_required_fields_are_asked_for() -> None:
    with pytest.raises(ArgumentError, match=r"--fixed rate=\.\.\."):
        build(Fields, {}, 0, Path())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "dmeo"}, "closest: 'demo'"),
        ({"recipe": "absent.py:X"}, "existing Python file"),
        ({"recipe": "adapt"}, "--fixed model=... data=..."),
        ({"trials": 0}, "trials >= 1"),
        ({"workers": 0}, "workers >= 1"),
        ({"seeds": ()}, "different seeds"),
        ({"seeds": (1, 1)}, "different seeds"),
        ({"prune": float("nan")}, "prune=nan"),
        ({"heartbeat": 0.0}, "heartbeat=0.0"),
        ({"retries": -1}, "retries=-1"),
        ({"startup": 0}, "startup=0"),
        ({"select": "best"}, "select='best'"),
        ({"max_error": float("nan")}, "max_error=nan"),
        ({"name": "a/b"}, "without slashes"),
        ({"space": ("softness=0:1",), "fixed": ("softness=0.5",)}, "softness in both"),
        ({"space": ("softness=0:1.5",)}, "softness"),
        ({"space": ("learning_rate=-1:1",)}, "learning_rate > 0"),
        ({"fixed": ("group=Q7",)}, "Q7"),
        ({"fixed": ("softness=0.5", "response=nearest", "learning_rate=1", "weight_decay=0", "augment=none")}, "empty"),
    ],
)
def test_bad_sweeps(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    sweep = Sweep(**({"recipe": "demo", "output": tmp_path / "out"} | changes))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError) as caught:
        sweep.check()
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists(), "checked before a folder is made"


def test_what_is_fixed_leaves_the_space() -> None:
    sweep = Sweep("demo", fixed=("softness=0.5",), space=("epochs=1:4",))
    assert "softness" not in sweep.varied
    assert sweep.varied["epochs"] == Range(1.0, 4.0)
    made = sweep.configuration({"epochs": 3, "learning_rate": 1e-3}, 5, Path("out"))
    assert isinstance(made, Adapt)
    assert (made.softness, made.epochs, made.seeds, made.output) == ((0.5,), 3, (5,), Path("out"))


def test_data_are_known_by_their_contents(tmp_path: Path) -> None:
    """The same file elsewhere is the same data, another one of that name is not."""
    files = [tmp_path / name / "data.npz" for name in ("a", "b", "c")]
    for file, text in zip(files, ("one", "one", "two"), strict=True):
        file.parent.mkdir()
        file.write_text(text)
    found = [Sweep("mnist", fixed=(f"data={file}",)).settings() for file in files]
    assert found[0] == found[1]
    assert found[0]["fixed"]["data"] != found[2]["fixed"]["data"]


def test_a_recipe_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("from tests.sweeps.toy import TOY\nOTHER = 3\n")
    sweep = Sweep(f"{file}:TOY")
    assert sweep.title == "toy"
    before = sweep.settings()
    file.write_text("from tests.sweeps.toy import TOY\nOTHER = 4\n")
    assert sweep.settings() != before, "other code, other sweep"
    with pytest.raises(ArgumentError, match="a SweepRecipe 'OTHER'"):
        Sweep(f"{file}:OTHER").check()
