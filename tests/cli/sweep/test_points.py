"""Points of a sweep: what a grid, a list and draws mean, and what their runs are called."""

import pytest

from lit_pretrain.cli.sweep.points import (
    Range,
    combine,
    parse_grid,
    parse_ranges,
    points_of,
    run_names,
)
from lit_pretrain.errors import UserError
from lit_pretrain.report.run_folder import check_run_name


def test_values_are_yaml_and_brackets_hold_commas() -> None:
    found = parse_grid(["a=0.01,1e-3,3", "--b-c.d=[1, 2],{x: 1, y: 2}, 'u,v' ,null,true"])
    assert found == {
        "a": [0.01, 0.001, 3],
        "b_c.d": [[1, 2], {"x": 1, "y": 2}, "u,v", None, True],
    }


def test_a_grid_is_every_combination_and_points_are_combined_with_it() -> None:
    assert combine({"a": [1, 2], "b": [3, 4]}, [], {}, None, 0) == [
        {"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4},
    ]  # fmt: skip
    points = points_of([{"c": 5}, {"--d-e": 6}])
    assert combine({"a": [1, 2]}, points, {}, None, 0) == [
        {"c": 5, "a": 1}, {"c": 5, "a": 2}, {"d_e": 6, "a": 1}, {"d_e": 6, "a": 2},
    ]  # fmt: skip
    assert combine({}, [], {}, None, 0) == [{}]


def test_draws_lie_in_their_ranges_and_more_of_them_add_runs() -> None:
    ranges = parse_ranges(["rate=0.001:0.1:log", "share=-1:1", "layers=1:4"])
    few = combine({"kind": ["x", "y"]}, [], ranges, 200, 7)
    assert combine({"kind": ["x", "y"]}, [], ranges, 400, 7)[: len(few)] == few
    assert combine({"kind": ["x", "y"]}, [], ranges, 200, 8) != few
    assert {point["kind"] for point in few} == {"x", "y"}
    assert {point["layers"] for point in few} == {1, 2, 3, 4}
    assert all(-1 <= point["share"] <= 1 for point in few)
    rates = sorted(point["rate"] for point in few)
    assert rates[0] >= 0.001
    assert rates[-1] <= 0.1
    # As many below the geometric middle as above.
    assert 0.4 < sum(rate < 0.01 for rate in rates) / len(rates) < 0.6
    assert Range("1:3", "n").at(1 - 1e-12) == 3
    narrow = Range("0.12344:0.12346", "n")  # with no number of four digits in it
    assert narrow.low <= narrow.at(0.1) <= narrow.at(0.9) <= narrow.high


def test_draws_from_a_grid_alone_are_no_more_than_it_has() -> None:
    assert len(combine({"a": [1, 2]}, [], {}, 100, 0)) == 2


NASTY = ["a/b", "../x", "$(rm -rf)", " ", "", "é", "x" * 300, "lit_pretrain.optim.AdamW", "a\nb"]


def test_names_are_short_unique_and_can_be_folders() -> None:
    points = [{"model.optimizer.lr": 0.01, "data.seed": seed} for seed in (0, 1)]
    assert run_names(points) == ["lr=0.01,seed=0", "lr=0.01,seed=1"]
    both = [{"model.seed": 1, "data.seed": 2}]
    assert run_names(both) == ["model.seed=1,data.seed=2"]
    assert run_names([{}]) == ["base"]
    nasty = [{"a.b": value, "c.b": [value, {"k": value}]} for value in NASTY]
    names = run_names(nasty)
    assert len(set(names)) == len(NASTY)
    for name in names:
        check_run_name(name)
    assert any("AdamW" in name and "optim" not in name.partition(",")[0] for name in names)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parse_grid(["a"]), "--grid a: NAME=VALUE,VALUE is needed"),
        (lambda: parse_grid(["a="]), "--grid a has no values"),
        (lambda: parse_grid(["a=1", "a=2"]), "--grid a is given twice"),
        (lambda: parse_grid(["a=1,1"]), "--grid a has the value 1 twice"),
        (lambda: parse_grid(["a=[1,2"]), "--grid a"),
        (lambda: parse_ranges(["a=1"]), "--range a=1: LOW:HIGH is needed"),
        (lambda: parse_ranges(["a=2:1"]), "LOW must be below HIGH"),
        (lambda: parse_ranges(["a=0:1:log"]), "and above 0 for log"),
        (lambda: parse_ranges(["a=1:2:exp"]), "LOW:HIGH:log"),
        (lambda: parse_ranges(["a=x:2"]), "LOW:HIGH is needed"),
        (lambda: parse_ranges(["a=.nan:2"]), "LOW must be below HIGH"),
        (lambda: combine({}, [], {"a": Range("1:2", "a")}, None, 0), "say how often by --random"),
        (lambda: combine({}, [], {}, 3, 0), "--random draws from --range and --grid"),
        (lambda: combine({"a": [1]}, [], {}, 0, 0), "--random 0 must be at least 1"),
        (lambda: combine({"a": [1]}, [{"a": 2}], {}, None, 0), "a is in --grid and in points"),
    ],
)
def test_mistakes_are_named(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(UserError) as found:
        call()
    assert message in str(found.value)


@pytest.mark.parametrize("value", [{"a": 1}, [1], [["a"]], None])
def test_a_list_of_points_holds_mappings(value: object) -> None:
    with pytest.raises(UserError, match="a list of mappings of options to values is needed"):
        points_of(value)
