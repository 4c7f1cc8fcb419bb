"""The statements of results/*/FINDINGS.md, held to the committed figures.

Every figure that such a page quotes must stand in its folder; the statements of hops-small are
asserted by number.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from findings import PAGE, figures, unsupported

RESULTS = Path(__file__).parents[2] / "results"
FOLDER = RESULTS / "hops-small"
REFINED = ("+ residual", "+ search", "both")
CHANCE = 1 / 11
SEED_0, SEED_2, STAGE_2 = "out/hops-s0", "out/hops-s2", "out/hops-stage2"

pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="results are not in the sdist")


@pytest.mark.parametrize(
    "page", sorted(RESULTS.glob(f"*/{PAGE}")), ids=lambda page: page.parent.name
)
def test_every_figure_that_is_quoted_stands_in_the_folder(page):
    assert unsupported(page.parent) == []


def test_a_figure_has_its_unit_and_is_looked_up_as_it_is_rounded(tmp_path):
    (tmp_path / "results.json").write_text('{"accuracy": 0.38251, "change": -0.0123}', "utf-8")
    said = "1. Right: 38 % or 38.25 %, 1.2 points lost ([x](y/7.7), T=6.5), -1.23 to 38.3 points."
    (tmp_path / PAGE).write_text(said, "utf-8")
    assert [str(one) for one in figures(said)] == [
        *("38 %", "38.25 %", "1.2 points", "-1.23 points", "38.3 points")
    ]
    assert unsupported(tmp_path) == []


@pytest.mark.parametrize(
    "said", ["38.26 %", "39 %", "38.25 nats", "+1.23 points", "+1.2 [-1.2, 2] %"]
)
def test_a_figure_that_nothing_beside_it_has_is_told(said, tmp_path):
    (tmp_path / "results.json").write_text('{"accuracy": 0.38251, "change": -0.0123}', "utf-8")
    (tmp_path / PAGE).write_text(f"1. It is {said}.", "utf-8")
    assert unsupported(tmp_path)


def read(name):
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def seeds():
    """The sets of the three training seeds."""
    return read("results.json")["sets"]


@pytest.fixture(scope="module")
def less_trained():
    pages = sorted(FOLDER.glob("*/results.json"))
    return [one for page in pages for one in json.loads(page.read_text("utf-8"))["sets"]]


@pytest.fixture(scope="module")
def diagnosed():
    return read("diagnosis.json")["sets"]


def margin(row):
    return row["margin_against_coconut"]["margin_difference"]


def test_there_are_three_seeds(seeds):
    assert sorted(one["recipe"]["seed"] for one in seeds) == [0, 1, 2]


def test_1_thoughts_do_the_work(seeds):
    for rows in (one["rows"] for one in seeds):
        assert rows["Coconut"]["accuracy"] == rows["CoT"]["accuracy"] == 1.0
        assert 6 * rows["Coconut"]["tokens_per_problem"] == rows["CoT"]["tokens_per_problem"]
        for name in ("No-CoT", "pause tokens"):
            row = rows[name]
            assert row["accuracy"] - 1.96 * row["accuracy_stderr"] < CHANCE
            assert row["against_coconut"]["test"]["p_value"] < 1e-9


def test_2_no_refined_row_changes_an_accuracy(seeds):
    for one in seeds:
        for name in REFINED:
            test = one["rows"][name]["against_coconut"]["test"]
            assert test["only_first"] == test["only_second"] == 0
            assert 0 <= one["rows"][name]["model_args"]["memory_rate"] <= 0.05


def test_3_the_search_is_worth_a_little_margin_and_neither_sign_is_certain(seeds):
    for rows in (one["rows"] for one in seeds):
        assert margin(rows["+ search"])["low"] > 0
        assert margin(rows["+ search"])["high"] < 0.01 * rows["Coconut"]["margin_mean"]
    sizes = [one["rows"]["+ search"]["model_args"]["search_step_size"] for one in seeds]
    assert [size > 0 for size in sizes] == [True, True, False]
    residual = [margin(one["rows"]["+ residual"]) for one in seeds]
    assert sum(one["low"] > 0 for one in residual) == 1
    assert sum(one["high"] < 0 for one in residual) == 2


def test_4_towards_the_strong_reference_beats_away_from_it_but_not_in_seed_2(diagnosed):
    assert [one["folder"] for one in diagnosed] == [SEED_0, SEED_2, STAGE_2]
    for one in diagnosed:
        detached = [sign for sign in one["signs"] if sign["gradient"] == "detached"]
        assert len(detached) == 4
        if one["folder"] == SEED_2:
            assert all(s["margin"]["low"] <= 0 <= s["margin"]["high"] for s in detached)
        else:
            assert all(sign["margin"]["low"] > 0 for sign in detached)


def test_5_the_gradient_through_the_references_never_helped(diagnosed):
    for one in diagnosed:
        through = [effect for effect in one["effects"] if effect["what"] == "through"]
        assert not any(effect["margin"]["low"] > 0 for effect in through)
        costly = 1.0 if one["folder"] == SEED_2 else 0.1
        for effect in through:
            if effect["setting"]["step_size"] >= costly:
                assert effect["accuracy"] < one["accuracy"]
                assert effect["accuracy_test"]["p_value"] < 0.01


def test_6_a_memory_rate_of_0_3_costs_margin_everywhere_and_accuracy_somewhere(
    seeds, less_trained, diagnosed
):
    costs = 0
    for one in [*seeds, *less_trained]:
        settings = [s for s in one["sweep"]["settings"] if s["memory_rate"] == 0.3]
        assert settings
        assert all(s["margin_against_plain"]["high"] < 0 for s in settings)
        costs += any(s["mcnemar_against_plain"]["p_value"] < 0.01 for s in settings)
    assert costs >= 2
    for one in diagnosed:
        geometry = one["geometry"]
        assert min(geometry["to_previous"]) > max(geometry["thought_norm"])


def test_7_references_are_nearer_to_the_next_thought(diagnosed):
    assert all(one["geometry"]["ahead"]["high"] < 0 for one in diagnosed)


def test_8_the_number_of_thoughts_is_learnt(diagnosed):
    for one in diagnosed:
        for effect in one["effects"]:
            if effect["what"] == "T" and effect["setting"]["latent_steps"] != 9:
                assert effect["accuracy"] < (0.01 if effect["setting"]["latent_steps"] < 9 else 0.5)
                if effect["setting"]["latent_steps"] == 11:
                    assert effect["accuracy"] < 0.2


def test_9_where_there_is_room_the_search_raises_the_margin_only(less_trained):
    assert len(less_trained) == 2
    for one in less_trained:
        rows = one["rows"]
        assert rows["Coconut"]["accuracy"] < 1.0
        assert margin(rows["+ search"])["low"] > 0
        assert all(rows[name]["against_coconut"]["test"]["p_value"] > 0.05 for name in REFINED)
