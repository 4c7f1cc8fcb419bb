"""`latentref leaderboard`: rows, ranks, refused comparisons and written files."""

from __future__ import annotations

import csv
import io
import json

import pytest
import yaml
from boards import BASE, by_name, turned
from lm_eval_files import write_run
from scipy import stats

from lm_eval_latentref.cli import main
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation import leaderboard as leaderboard_module
from lm_eval_latentref.evaluation.board import FIELDS
from lm_eval_latentref.evaluation.leaderboard import leaderboard, state_of
from lm_eval_latentref.evaluation.leaderboard_report import (
    as_csv,
    as_html,
    as_json,
    as_markdown,
    as_text,
    save_eval_results,
)


@pytest.fixture
def three(tmp_path):
    """Two rows that differ by three documents, and one that is far better."""
    for name, num in (("plain", 0), ("same", 3), ("good", 60)):
        write_run(tmp_path / name, {"t": {"acc": turned(num)}}, name=name, candidates=4)
    return tmp_path


def test_rows_share_a_rank_unless_they_differ_significantly(three):
    board = leaderboard([three])
    assert [(row.name, row.rank) for row in board.rows] == [("good", 1), ("same", 2), ("plain", 2)]
    pairs = {(pair.first, pair.second): pair for pair in board.pairs}
    close = pairs["same", "plain"]
    assert close.difference == pytest.approx(-3 / 400)
    assert close.p == pytest.approx(stats.binomtest(0, 3).pvalue)
    assert close.interval[0] <= close.difference <= close.interval[1]
    assert (close.flips, close.num_documents, close.paired) == ((3, 0), 400, True)
    far = pairs["good", "plain"]
    assert far.adjusted_p == pytest.approx(3 * stats.binomtest(0, 60).pvalue)


def test_the_mean_over_chance_knows_the_number_of_candidates(three):
    row = by_name(leaderboard([three]))["plain"]
    assert row.normalised_mean == pytest.approx((BASE.mean() - 0.25) / 0.75)


def test_below_chance_is_no_better_than_guessing(tmp_path):
    write_run(tmp_path, {"t": {"acc": [0.0, 0.0, 0.0, 1.0]}}, candidates=2)
    assert leaderboard([tmp_path]).rows[0].normalised_mean == 0.0


def test_json_has_what_other_programs_read(three, tmp_path, capsys):
    target = tmp_path / "board.json"
    assert main(["leaderboard", str(three), "-o", str(target), "--baseline", "plain"]) == 0
    written = json.loads(target.read_text())
    assert [row["name"] for row in written["rows"]] == ["good", "same", "plain"]
    first = written["rows"][0]
    assert first["tasks"]["t"]["acc,none"].keys() == {"value", "stderr", "n"}
    assert first["rank"] == 1
    names = {"model", "mean", "normalised_mean", "cost", "settings", "command", "rank_by_stderr"}
    assert names <= first.keys()
    assert first["to_baseline"]["difference"] == pytest.approx(60 / 400)
    pair = written["pairs"][0]
    assert {"difference", "interval", "p", "adjusted_p"} <= pair.keys()
    assert "good" in capsys.readouterr().out


def test_a_folder_gets_every_kind_and_the_suffix_decides(three, tmp_path):
    assert main(["leaderboard", str(three), "-o", str(tmp_path / "all")]) == 0
    kinds = {file.suffix for file in (tmp_path / "all").iterdir()}
    assert kinds == {".txt", ".md", ".csv", ".json", ".html"}
    assert main(["leaderboard", str(three), "-o", str(tmp_path / "b.pdf")]) == 3


def test_a_board_in_the_folder_of_the_results_is_no_result(three):
    for _ in range(2):
        assert main(["leaderboard", str(three), "-o", str(three / "board")]) == 0
    written = json.loads((three / "board" / "leaderboard.json").read_text())
    assert (len(written["rows"]), written["left_out"]) == (3, [])


def test_a_row_without_a_metric_of_the_mean_is_named(three):
    write_run(three / "odd", {"t": {"f1": turned(0)}}, name="odd")
    board = leaderboard([three])
    assert (by_name(board)["odd"].mean, by_name(board)["odd"].rank) == (None, None)
    assert any("odd has no acc,none of t" in note for note in board.notes)


def test_csv_holds_every_number_once(three):
    lines = list(csv.DictReader(io.StringIO(as_csv(leaderboard([three])))))
    assert [line["name"] for line in lines] == ["good", "same", "plain"]
    assert float(lines[2]["t:acc,none"]) == BASE.mean()
    assert lines[2]["t:acc,none:n"] == "400"


def test_rows_without_samples_are_ranked_in_brackets(tmp_path):
    for name, num in (("plain", 0), ("same", 3), ("good", 80)):
        logs = name != "good"
        write_run(tmp_path / name, {"t": {"acc": turned(num)}}, name=name, log_samples=logs)
    board = leaderboard([tmp_path])
    assert {r.name: (r.rank, r.rank_by_stderr) for r in board.rows} == {
        "good": (None, 1),
        "same": (1, None),
        "plain": (1, None),
    }
    assert "(1)" in as_text(board)
    assert as_html(board).count('"chip tier-by-stderr"') == 1
    assert any("ranks in brackets" in note for note in board.notes)


def test_standard_errors_that_are_missing_leave_no_rank(tmp_path):
    for name in ("a", "b"):
        write_run(
            tmp_path / name, {"t": {"acc": turned(0)}}, name=name, log_samples=False, stderr="N/A"
        )
    board = leaderboard([tmp_path])
    assert [(row.rank, row.rank_by_stderr) for row in board.rows] == [(None, None)] * 2
    write_run(tmp_path / "c", {"t": {"acc": turned(90)}}, name="c", log_samples=False)
    write_run(tmp_path / "d", {"t": {"acc": turned(0)}}, name="d", log_samples=False)
    board = leaderboard([tmp_path])
    ranks = {row.name: row.rank_by_stderr for row in board.rows}
    assert ranks == {"c": 1, "d": 2, "a": None, "b": None}
    assert any("neither samples nor a standard error: a, b" in n for n in board.notes)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("version", {"versions": {"t": 2.0}}),
        ("num_fewshot", {"shots": 5}),
        ("documents", {"text": "another "}),
        ("limit", {"values": 100}),
    ],
)
def test_other_work_is_not_compared_unless_it_may_differ(field, change, three):
    change = dict(change)
    values = turned(0)[: change.pop("values", None)]
    write_run(three / "odd", {"t": {"acc": values}}, name="odd", **change)
    board = leaderboard([three])
    assert by_name(board)["odd"].rank is None
    assert by_name(board)["plain"].rank == 2
    assert not any("odd" in (pair.first, pair.second) for pair in board.pairs)
    (note,) = [note for note in board.notes if "odd" in note]
    assert field in note
    assert "are not compared" in note
    assert ".0" not in note
    allowed = leaderboard([three], allow_different=[field])
    assert by_name(allowed)["odd"].rank == 2
    assert any(field in note for note in allowed.notes)


def test_rows_without_a_document_in_common_are_never_compared(tmp_path):
    write_run(tmp_path / "a", {"t": {"acc": turned(0)}}, name="a")
    file = write_run(tmp_path / "b", {"t": {"acc": turned(90)}}, name="b")
    samples = next(file.parent.glob("samples*"))
    samples.write_text(samples.read_text().replace('"doc_id": ', '"doc_id": 1000'))
    board = leaderboard([tmp_path], allow_different=FIELDS)
    assert not board.pairs
    assert sorted(str(row.rank) for row in board.rows) == ["1", "None"]
    (note,) = [note for note in board.notes if "not compared: documents of t" in note]
    assert "--allow_different" not in note


def test_several_processes_and_one_do_the_same_work(tmp_path):
    order = [*range(0, 400, 2), *range(1, 400, 2)]
    write_run(tmp_path / "one", {"t": {"acc": turned(0)}}, name="one")
    write_run(tmp_path / "two", {"t": {"acc": turned(5)}}, name="two", order=order)
    (pair,) = leaderboard([tmp_path]).pairs
    assert pair.flips in ((5, 0), (0, 5))


def test_the_mean_is_over_tasks_that_all_rows_have(tmp_path):
    write_run(tmp_path / "a", {"t": {"acc": [1, 0]}, "u": {"acc": [1, 1]}}, name="a")
    write_run(tmp_path / "b", {"t": {"acc": [1, 1]}}, name="b")
    board = leaderboard([tmp_path])
    assert board.ranked_by == {"t": "acc,none"}
    assert [(row.name, row.mean) for row in board.rows] == [("b", 1.0), ("a", 0.5)]
    assert any("not over u" in note for note in board.notes)


def test_a_perplexity_is_shown_and_does_not_prevent_ranks(tmp_path):
    for name, num in (("a", 0), ("b", 60)):
        tasks = {"t": {"acc": turned(num)}, "wiki": {"word_perplexity": [[-9.0, 3]] * 400}}
        file = write_run(tmp_path / name, tasks, name=name, stderr="N/A")
        content = json.loads(file.read_text())
        content["results"]["wiki"]["word_perplexity,none"] = 20.0
        content["higher_is_better"]["wiki"]["word_perplexity"] = False
        file.write_text(json.dumps(content))
    board = leaderboard([tmp_path])
    assert [(row.name, row.rank) for row in board.rows] == [("b", 1), ("a", 2)]
    assert board.rows[0].tasks["wiki"]["word_perplexity,none"].value == 20.0
    assert any("not an accuracy: wiki" in note for note in board.notes)


def test_a_metric_of_all_documents_does_not_prevent_tests_of_other_metrics(tmp_path):
    for name, num in (("a", 0), ("b", 90)):
        tasks = {"t": {"acc": turned(num)}, "f": {"f1": [[0, 1], [1, 1]]}}
        file = write_run(tmp_path / name, tasks, name=name)
        content = json.loads(file.read_text())
        content["results"]["f"]["f1,none"] = 0.6
        file.write_text(json.dumps(content))
    board = leaderboard([tmp_path])
    assert board.ranked_by == {"t": "acc,none"}
    assert [row.rank for row in board.rows] == [1, 2]
    assert any("not an accuracy: f" in note for note in board.notes)


def test_a_lower_value_is_better_where_lm_eval_says_so(tmp_path):
    for name, value in (("a", 30.0), ("b", 20.0)):
        file = write_run(tmp_path / name, {"wiki": {"bpb": [value, value]}}, name=name)
        content = json.loads(file.read_text())
        content["higher_is_better"]["wiki"]["bpb"] = False
        file.write_text(json.dumps(content))
    assert [row.name for row in leaderboard([tmp_path]).rows] == ["b", "a"]


HOSTILE = "<script>x</script>|\x1b[31mred\u202e`\n# h"


def test_names_with_markup_and_control_characters_are_only_text(tmp_path):
    write_run(tmp_path, {"t": {"acc": [1.0, 0.0]}}, name=HOSTILE, text=HOSTILE)
    write_run(tmp_path / "b", {"t": {"acc": [0.0, 0.0]}}, name="b", text=HOSTILE)
    board = leaderboard([tmp_path])
    for text in (as_text(board), as_markdown(board), as_csv(board), as_html(board)):
        assert not {"\x1b", "\u202e"} & set(text)
    assert "<script>x" not in as_html(board)
    outside_of_code = "".join(as_markdown(board).split("```")[::2])
    assert "<script>" not in outside_of_code
    heads = [line for line in outside_of_code.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in heads}) == 1
    json.dumps(as_json(board), allow_nan=False)


def test_broken_files_are_named_and_never_fatal(three, capsys):
    (three / "plain" / "half.json").write_text('{"results": {"t"')
    assert main(["leaderboard", str(three)]) == 0
    assert "left out: " in (out := capsys.readouterr().out)
    assert "half.json" in out
    (three / "none").mkdir()
    assert main(["leaderboard", str(three / "none")]) == 3
    assert main(["leaderboard", str(three / "plain" / "half.json")]) == 3
    assert main(["leaderboard", str(three), "--baseline", "nobody"]) == 3
    assert main(["leaderboard", str(three), "--allow_different", "colour"]) == 3
    assert all("Traceback" not in line for line in capsys.readouterr().err.splitlines())


def test_new_results_appear_and_broken_ones_do_not_end_the_watch(three, monkeypatch, capsys):
    changes = [
        lambda: write_run(three / "new", {"t": {"acc": turned(90)}}, name="new"),
        lambda: (three / "bad.json").write_text("{"),
        lambda: (_ for _ in ()).throw(KeyboardInterrupt),
    ]
    monkeypatch.setattr("time.sleep", lambda seconds: changes.pop(0)())
    assert main(["leaderboard", str(three), "--watch", "1"]) == 130
    out = capsys.readouterr().out
    assert out.count("| rank |") == 3
    assert "| new" in out.split("| rank |")[2]
    assert "bad.json" in out.split("| rank |")[3]


def test_entries_of_the_hub_hold_value_and_settings(tmp_path):
    file = write_run(tmp_path / "run", {"t": {"acc": [1.0, 0.0]}, "own": {"acc": [1.0, 1.0]}})
    content = json.loads(file.read_text())
    content["configs"]["t"]["dataset_path"] = "org/data"
    content["config"]["latentref"] = {"memory_rate": 0.3}
    file.write_text(json.dumps(content))
    board = leaderboard([tmp_path / "run"])
    (written,) = save_eval_results(board, tmp_path / "hub")
    assert written.parent.name == ".eval_results"
    (entry,) = yaml.safe_load(written.read_text())
    assert entry["dataset"] == {"id": "org/data", "task_id": "t"}
    assert (entry["value"], entry["date"]) == (0.5, "2026-01-01")
    assert "memory_rate=0.3" in entry["notes"]
    assert any("no id on the hub: own" in note for note in board.notes)
    twins = leaderboard([f"a b={tmp_path / 'run'}", f"a-b={tmp_path / 'run'}"])
    assert len(set(save_eval_results(twins, tmp_path / "twins"))) == 2


def test_a_file_that_goes_while_it_is_watched_is_no_error(three, monkeypatch):
    before = state_of([three])
    monkeypatch.setattr(leaderboard_module, "result_files", lambda path: [path / "gone.json"])
    assert state_of([three]) == [] != before


def test_a_setting_is_no_formula(tmp_path):
    config = {"latentref": {"latent_kind": "=cmd()", "latent_steps": 6}}
    write_run(tmp_path, {"t": {"acc": [1, 0]}}, config=config)
    (line,) = csv.DictReader(io.StringIO(as_csv(leaderboard([tmp_path]))))
    assert (line["kind"], line["T"]) == ("'=cmd()", "6")


def test_a_perplexity_of_millions_is_short(tmp_path):
    write_run(tmp_path, {"t": {"perplexity": [1e12, 1e12 + 2]}}, candidates=1)
    board = leaderboard([tmp_path])
    assert all("1e+12" in text for text in (as_text(board), as_html(board)))


def test_no_run_at_all_is_an_error_of_one_line():
    with pytest.raises(LatentRefError, match="no results can be read; nowhere: no such file"):
        leaderboard(["nowhere"])


def test_a_folder_without_runs_is_named(tmp_path):
    with pytest.raises(LatentRefError, match=f"{tmp_path}: no results of lm-eval"):
        leaderboard([tmp_path])
