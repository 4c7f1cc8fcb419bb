"""Rows of a leaderboard: which runs each joins, its name, cost, origin and command."""

from __future__ import annotations

import pytest
from boards import BASE, by_name, turned
from lm_eval_files import write_run

from lm_eval_latentref.evaluation.leaderboard import leaderboard
from lm_eval_latentref.evaluation.leaderboard_report import (
    save,
)


@pytest.mark.parametrize("seconds", ["1e400", "1e300", "nan", [], {}])
def test_a_time_that_is_no_number_is_not_known(tmp_path, seconds):
    options = {"total_evaluation_time_seconds": seconds}
    file = write_run(tmp_path / "a", {"t": {"acc": turned(0)}}, name="a", **options)
    file.write_text(
        file.read_text().replace('"acc,none":', '"perplexity,none": 1e308, "acc,none":')
    )
    write_run(tmp_path / "b", {"t": {"acc": turned(1)}}, name="b")
    board = leaderboard([tmp_path])
    assert by_name(board)["a"].entry.cost["wall_seconds"] is None
    assert len(save(board, tmp_path / "board")) == 5


def test_seeds_of_one_row_are_one_row_clustered_by_document(tmp_path):
    for seed, num in enumerate((0, 8)):
        config = {"random_seed": seed}
        write_run(tmp_path / f"s{seed}", {"t": {"acc": turned(num)}}, config=config)
    write_run(tmp_path / "other", {"t": {"acc": turned(60)}}, name="other")
    board = leaderboard([tmp_path])
    row = next(row for row in board.rows if "2 seeds" in row.name)
    assert row.mean == pytest.approx(BASE.mean() + 4 / 400)
    (pair,) = board.pairs
    assert pair.num_documents == 400
    assert pair.flips is None
    assert pair.p < 1e-6


def test_named_rows_join_the_tasks_that_were_run_one_by_one(tmp_path):
    write_run(tmp_path / "1", {"t": {"acc": [1, 0]}})
    write_run(tmp_path / "2", {"u": {"acc": [1, 1]}})
    board = leaderboard([f"mine={tmp_path / '1'}", f"mine={tmp_path / '2'}"])
    assert [(row.name, row.mean) for row in board.rows] == [("mine", 0.75)]


@pytest.mark.parametrize(
    "other",
    [
        {"chat_template": "{{ x }}"},
        {"system_instruction": "Be brief."},
        {"fewshot_as_multiturn": True},
        {"config": {"gen_kwargs": {"temperature": 1}, "random_seed": 7}},
        {"config": {"model_sha": "abc", "random_seed": 7}},
    ],
)
def test_runs_that_differ_in_more_than_seeds_are_rows_of_their_own(tmp_path, other):
    write_run(tmp_path / "a", {"t": {"acc": turned(0)}})
    other = {"config": {"random_seed": 7}, **other}
    write_run(tmp_path / "b", {"t": {"acc": turned(90)}}, **other)
    assert len(leaderboard([tmp_path]).rows) == 2


def test_a_repeated_run_is_a_single_row(tmp_path):
    for name in ("a", "copy"):
        write_run(tmp_path / name, {"t": {"acc": turned(0)}})
    board = leaderboard([tmp_path])
    assert len(board.rows) == 1
    assert any("repeats" in note for note in board.notes)


def test_rows_of_the_same_model_are_named_by_their_differences(tmp_path):
    for number, rate in enumerate((0.0, 0.3)):
        settings = {"latent_steps": 6, "memory_rate": rate, "search_step_size": 0.0}
        write_run(
            tmp_path / str(number),
            {"t": {"acc": turned(number)}},
            name="/some/where/set",
            config={"latentref": settings},
        )
    assert {row.name for row in leaderboard([tmp_path]).rows} == {"set alpha=0.0", "set alpha=0.3"}


def test_a_cost_that_is_not_known_is_empty(tmp_path):
    cost = {
        "forwards": {"backbone": 800, "strong": 400},
        "thought_steps": 1200,
        "tokens_encoded": 8000,
        "tokens_generated": 0,
        "seconds": {"load": 9.0, "encode": 1.0, "think": 2.0, "decode": 1.0},
        "peak_memory_bytes": {"host": 5, "cuda:0": 7},
    }
    config = {"latentref": {"latent_steps": 3, "cost": cost}}
    write_run(tmp_path / "a", {"t": {"acc": turned(0)}}, name="ours", config=config)
    write_run(tmp_path / "b", {"t": {"acc": turned(1)}}, name="hf")
    rows = by_name(leaderboard([tmp_path]))
    ours = rows["ours"].entry.cost
    assert (ours["thoughts_per_document"], ours["tokens_written_per_document"]) == (3.0, 0.0)
    assert ours["forwards_per_document"] == {"backbone": 2.0, "strong": 1.0}
    assert (ours["seconds_per_document"], ours["peak_memory_bytes"]) == (0.01, 7)
    assert rows["hf"].entry.cost == dict.fromkeys(ours) | {"wall_seconds": 12.5}


def test_a_row_of_several_runs_says_how_each_was_made(tmp_path):
    for number, task in enumerate("tu"):
        options = {"config": {"device": f"cuda:{number}"}, "lm_eval_version": f"0.4.1{number}"}
        write_run(tmp_path / task, {task: {"acc": [1, 0]}}, **options)
    board = leaderboard([f"both={tmp_path / 't'}", f"both={tmp_path / 'u'}"])
    made = board.rows[0].entry.made_with
    assert (made["device"], made["versions"]["lm-eval"]) == ("cuda:0, cuda:1", "0.4.10, 0.4.11")
    assert set(made["data"]) == {"t", "u"}
    assert any("rows differ in device: cuda:0, cuda:1" in note for note in board.notes)


def test_a_row_that_joins_runs_of_other_settings_says_so(tmp_path):
    for number, rate in enumerate((0.0, 0.3)):
        config = {"latentref": {"latent_steps": 6, "memory_rate": rate}}
        write_run(tmp_path / str(number), {"t": {"acc": turned(number)}}, config=config)
    board = leaderboard([f"a={tmp_path / '0'}", f"a={tmp_path / '1'}"])
    assert "a joins runs that differ in alpha" in board.notes


def test_a_name_that_was_given_stays(tmp_path):
    write_run(tmp_path / "x", {"t": {"acc": turned(0)}}, name="A")
    write_run(tmp_path / "y", {"t": {"acc": turned(1)}}, name="B")
    board = leaderboard([tmp_path / "x", f"A={tmp_path / 'y'}"], baseline="A")
    assert by_name(board)["A"].entry.runs[0].name == "B"
    assert len(by_name(board)) == 2


def test_a_file_that_a_row_is_given_twice_is_one_run(tmp_path):
    write_run(tmp_path, {"t": {"acc": [1, 0]}})
    (row,) = leaderboard([f"a={tmp_path}", f"a={tmp_path}"]).rows
    assert len(row.entry.runs) == 1


def test_other_machines_are_pointed_at(tmp_path):
    write_run(tmp_path / "a", {"t": {"acc": [1, 0]}}, name="a")
    write_run(tmp_path / "b", {"t": {"acc": [1, 0]}}, name="b", config={"device": "cuda:1"})
    notes = leaderboard([tmp_path]).notes
    assert any("rows differ in device: cpu, cuda:1" in note for note in notes)


def test_the_command_repeats_the_row_and_gives_no_secret_away(tmp_path):
    args = {"pretrained": "org/m", "token": "hf_abcdefgh123", "dtype": "float32"}
    config = {"model_args": args, "limit": 100.0, "batch_size": 8, "random_seed": 7}
    config |= {"numpy_seed": 7, "torch_seed": 7, "fewshot_seed": 7}
    write_run(tmp_path, {"t": {"acc": [1, 0]}, "u": {"acc": [1, 0]}}, config=config, shots=5)
    (row,) = leaderboard([tmp_path]).rows
    assert row.entry.command == (
        "lm_eval run --model hf --model_args 'pretrained=org/m,token=***,dtype=float32' "
        "--tasks t,u --num_fewshot 5 --limit 100 --batch_size 8 --device cpu --seed 7,7,7,7 "
        "--log_samples --output_path OUT"
    )


def test_the_command_repeats_the_prompt(tmp_path):
    prompting = {"chat_template": "{{ x }}", "system_instruction": "Be brief."}
    write_run(tmp_path, {"t": {"acc": [1, 0]}}, fewshot_as_multiturn=False, **prompting)
    (row,) = leaderboard([tmp_path]).rows
    options = "--apply_chat_template --system_instruction 'Be brief.' --fewshot_as_multiturn False"
    assert options in row.entry.command
