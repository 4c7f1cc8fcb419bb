"""`latentref check`: comparisons, refusals, written files and exit statuses."""

from __future__ import annotations

import json
import shutil
from xml.etree import ElementTree

import pytest
import yaml
from check_runs import NOISY, NUM, RIGHT, WORSE, runs
from lm_eval_files import write_run
from scipy import stats

from lm_eval_latentref.cli import main
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.check import check
from lm_eval_latentref.testing import InconclusiveWarning
from lm_eval_latentref.testing import check as check_in_test

__all__ = ["runs"]

EQUAL_ENOUGH = [0.0, *RIGHT[1:300], 1.0, *RIGHT[301:]]


def status_and_json(capsys, *words):
    status = main(["check", *map(str, words), "--format", "json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("values", "verdict", "status"),
    [
        (RIGHT, "pass", 0),
        (EQUAL_ENOUGH, "pass", 0),
        (WORSE, "fail", 1),
        (NOISY, "inconclusive", 2),
        ([1.0] * NUM, "pass", 0),
    ],
)
def test_the_status_is_that_of_the_paired_verdict(runs, capsys, values, verdict, status):
    words = (runs("new", values), "--baseline", runs("old", RIGHT))
    actual_status, actual = status_and_json(capsys, *words)
    (result,) = actual["results"]
    assert (actual_status, actual["verdict"], result["verdict"]) == (status, verdict, verdict)
    assert (result["task"], result["metric"]) == ("t", "acc,none")
    assert result["difference"] == pytest.approx(result["candidate"] - result["baseline"])
    assert result["interval"][0] <= result["difference"] <= result["interval"][1]
    assert (result["detectable"] is not None) == (verdict == "inconclusive")
    assert result["detectable"] is None or result["detectable"] > NUM


def test_the_p_value_is_one_sided_and_adjusted_by_holm(runs):
    old = runs("old", {"s": {"acc": RIGHT}, "t": {"acc": RIGHT}, "u": {"acc": RIGHT}})
    lost = {"s": 8, "t": 6, "u": 0}
    new = {task: {"acc": [0.0] * num + RIGHT[num:]} for task, num in lost.items()}
    results = check(runs("new", new), baseline=old).results
    p_values = [stats.binomtest(n, n, alternative="greater").pvalue if n else 1.0 for n in (8, 6)]
    assert [result.p_value for result in results] == pytest.approx([*p_values, 1.0])
    expected = [3 * p_values[0], 2 * p_values[1], 1.0]
    assert [result.adjusted_p_value for result in results] == pytest.approx(expected)
    strict = check(runs("new", new), baseline=old, max_drop=0.01).results[0]
    assert "by Holm" in strict.reason


def test_a_task_or_metric_that_is_missing_fails_by_name(runs):
    old = runs("old", {"s": {"acc": RIGHT}, "t": {"acc": RIGHT, "acc_norm": RIGHT}})
    report = check(runs("new", {"t": {"acc": RIGHT}, "more": {"acc": RIGHT}}), baseline=old)
    reasons = {(result.task, result.metric): result.reason for result in report.results}
    assert reasons == {
        ("s", "acc,none"): "the candidate has no such task",
        ("t", "acc,none"): "no document changed",
        ("t", "acc_norm,none"): "the candidate has no such metric",
    }
    assert report.verdict == "fail"


@pytest.mark.parametrize(
    ("options", "values", "reason"),
    [
        ({"versions": {"t": 2.0}}, RIGHT, "task version: 2.0, but 1.0"),
        ({"shots": 5}, RIGHT, "num_fewshot: 5, but 0"),
        ({"available": NUM}, RIGHT[:100], "documents (--limit): 100, but 400"),
        ({"text": "others "}, RIGHT, "its documents are not those of the baseline"),
    ],
)
def test_other_work_than_the_baselines_fails_by_name(runs, options, values, reason):
    report = check(runs("new", values, **options), baseline=runs("old", RIGHT))
    assert report.verdict == "fail"
    assert reason in report.results[0].reason


def test_documents_are_paired_whatever_their_order(runs):
    new = runs("new", WORSE, order=list(reversed(range(NUM))))
    (result,) = check(new, baseline=runs("old", RIGHT), show_flips=2).results
    assert (result.verdict, [flip.document for flip in result.flips]) == ("fail", [0, 1])
    assert result.p_value == pytest.approx(0.5**40)
    assert (result.flips[0].baseline_answer, result.flips[0].candidate_answer) == ("0", "1")
    assert result.flips[0].gold == "0"


def test_documents_without_a_hash_are_known_by_their_number(runs):
    old, new = runs("old", RIGHT), runs("new", RIGHT)
    (file,) = old.glob("samples*")
    file.write_text(file.read_text().replace('"doc_hash"', '"other"'))
    assert check(new, baseline=old).verdict == "pass"


def test_a_metric_that_only_the_aggregate_has_is_compared_by_its_value(runs):
    def tasks(pairs):
        return {"ppl": {"word_perplexity": pairs}, "t": {"acc": RIGHT}}

    lower = {"ppl": {"word_perplexity": False}, "t": {"acc": True}}
    old = runs("old", tasks([[-3.0, 2]] * NUM), higher_is_better=lower)
    new = runs("new", tasks([[-3.0, 2, 1]] * NUM), higher_is_better=lower)
    perplexity, accuracy = check(new, baseline=old).results
    assert (perplexity.verdict, perplexity.p_value) == ("fail", None)
    assert (perplexity.baseline, perplexity.candidate) == (2.0, 3.0)
    assert perplexity.reason == "rose by 1, more than 0.16"
    assert accuracy.verdict == "pass"


def test_where_lower_is_better_a_rise_is_the_drop(runs):
    better = {"t": {"brier_score": False}}
    high, low = ([value] * NUM for value in (0.9, 0.1))
    for first, second, verdict in ((low, high, "fail"), (high, low, "pass")):
        folders = [
            runs(name, {"t": {"brier_score": values}}, higher_is_better=better)
            for name, values in (("old", first), ("new", second))
        ]
        (result,) = check(folders[1], baseline=folders[0]).results
        assert result.verdict == verdict
        assert ("rose by 0.8000" in result.reason) == (verdict == "fail")
        assert result.interval[0] <= result.difference <= result.interval[1]


def test_a_baseline_without_samples_is_compared_by_value(runs):
    old = runs("old", RIGHT, log_samples=False)
    assert check(runs("new", NOISY), baseline=old).verdict == "pass"
    assert check(runs("new", NOISY), baseline=old, max_drop=0.0).verdict == "pass"
    assert check(runs("new", WORSE), baseline=old).verdict == "fail"


@pytest.mark.parametrize(
    "words",
    [
        ["--bogus"],
        ["--format", "xml"],
        ["--baseline"],
        ["--show_flips", "many"],
        [],
    ],
)
def test_wrong_options_have_the_status_of_a_mistake(runs, words):
    candidate = [str(runs("new", RIGHT))] if words else []
    assert main(["check", *candidate, *words]) == 3


def test_the_help_names_the_statuses(capsys):
    with pytest.raises(SystemExit) as error:
        main(["check", "--help"])
    assert error.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "0 pass, 1 fail, 2 inconclusive, 3 a mistake" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to compare with"),
        (["--baseline", "nowhere"], "no such file or folder"),
        (["--baseline", "old", "--max_drop", "-1"], "max_drop=-1.0"),
        (["--baseline", "old", "--max_drop", "nan"], "max_drop=nan"),
        (["--baseline", "old", "--significance", "0"], "significance=0.0"),
        (["--golden", "nowhere.json"], "nowhere.json cannot be read"),
        (["--golden", "old/golden.json"], "--write_golden"),
        (["--update"], "no baseline is named"),
        (["--write_golden"], "no file is named"),
    ],
)
def test_a_mistake_is_one_line_and_status_three(runs, capsys, monkeypatch, words, message):
    new, old = runs("new", RIGHT), runs("old", RIGHT)
    (old / "golden.json").write_text('{"format_version": 9}', encoding="utf-8")
    if "old" in words:
        (old / "golden.json").unlink()
    monkeypatch.chdir(new.parent)
    assert main(["check", "new", *words]) == 3
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


@pytest.mark.parametrize("content", ["", '{"results": ', "[]", '{"a": 1}'])
@pytest.mark.parametrize("side", ["new", "old"])
def test_a_damaged_or_foreign_file_is_a_mistake_that_names_it(runs, side, content):
    new, old = runs("new", RIGHT), runs("old", RIGHT)
    (new.parent / side / "results_broken.json").write_text(content, encoding="utf-8")
    with pytest.raises(LatentRefError, match=r"results_broken\.json") as error:
        check(new, baseline=old)
    assert "\n" not in str(error.value)


def test_a_baseline_without_metrics_does_not_pass(runs, tmp_path):
    (tmp_path / "g.json").write_text(
        '{"format_version": 1, "tolerance": 1e-4, "made_with": {}, "tasks": {}}'
    )
    with pytest.raises(LatentRefError, match="there is nothing to compare"):
        check(runs("new", RIGHT), golden=tmp_path / "g.json")


def test_a_candidate_without_samples_cannot_be_paired(runs):
    with pytest.raises(LatentRefError, match="--log_samples"):
        check(runs("new", RIGHT, log_samples=False), baseline=runs("old", RIGHT))


def test_the_newest_run_of_a_folder_is_judged(runs):
    new = runs("new", WORSE)
    newest = write_run(new, {"t": {"acc": RIGHT}}, date="2026-01-02T10-00-00.000001")
    content = json.loads(newest.read_text())
    newest.write_text(json.dumps({**content, "date": content["date"] + 86400.0}))
    assert check(new, baseline=runs("old", RIGHT)).verdict == "pass"


def test_no_change_is_zero_and_a_tiny_p_is_not(runs, capsys):
    old = str(runs("old", RIGHT))
    main(["check", str(runs("same", RIGHT)), "--baseline", old])
    assert "-0.0000" not in capsys.readouterr().out
    main(["check", str(runs("bad", [0.0] * NUM)), "--baseline", old])
    assert "<0.0001" in capsys.readouterr().out


@pytest.mark.parametrize("format", ["text", "markdown", "junit", "json"])
def test_every_format_names_task_metric_verdict_and_flips(runs, capsys, format):
    new, old = runs("new", WORSE), runs("old", RIGHT)
    words = ["--baseline", str(old), "--show_flips", "3", "--format", format]
    assert main(["check", str(new), *words]) == 1
    out = capsys.readouterr().out
    assert all(word in out for word in ("acc,none", "fail", "dropped by 0.1000"))
    assert out.count("1 to 0") == (0 if format == "json" else 3)
    if format == "junit":
        suite = ElementTree.fromstring(out)
        assert (suite.attrib["tests"], suite.attrib["failures"]) == ("1", "1")
        assert suite.find("testcase/failure") is not None
    if format == "json":
        assert len(json.loads(out)["results"][0]["flips"]) == 3


NASTY = 'a|b<script>alert(1)</script>\x1b[31m\ufffe\uffff%0A::error::@you #1 `x` ~~"é'


@pytest.mark.parametrize("format", ["text", "markdown", "junit"])
def test_markup_pipes_and_control_characters_in_names_are_inert(
    runs, tmp_path, capsys, monkeypatch, format
):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    path = tmp_path / "b.yaml"
    metric = {"name": "acc,none", "value": 0.75}
    path.write_text(yaml.safe_dump({"tasks": [{"name": NASTY, "metrics": [metric]}]}))
    words = ["--baseline", str(path), "--format", format]
    assert main(["check", str(runs("new", RIGHT)), *words]) == 1
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    if format == "junit":
        assert ElementTree.fromstring(out).find("testcase").attrib["classname"].startswith("a|b<s")
    if format == "markdown":
        assert "<script>" not in out
        assert not any(mark in out for mark in ("@you", "#1", "~~"))
        rows = [line.replace("\\|", "") for line in out.splitlines() if line.startswith("|")]
        assert {row.count("|") for row in rows} == {9}
    (line,) = err.splitlines()
    assert line.startswith("::error title=latentref check::a|b")
    assert "%250A" in line


def test_in_a_workflow_the_summary_grows_and_lines_are_annotated(
    runs, tmp_path, capsys, monkeypatch
):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    old = runs("old", RIGHT)
    for name, values, start in (("bad", WORSE, "::error"), ("noisy", NOISY, "::warning")):
        main(["check", str(runs(name, values)), "--baseline", str(old)])
        assert capsys.readouterr().err.startswith(start)
    text = summary.read_text()
    assert text.startswith("before\n### latentref check: fail\n")
    assert "### latentref check: inconclusive" in text


def test_as_a_test_it_fails_with_the_report_and_warns_if_inconclusive(runs):
    old = runs("old", RIGHT)
    assert check_in_test(runs("same", RIGHT), baseline=old).verdict == "pass"
    with pytest.raises(AssertionError, match=r"dropped by 0\.1000"):
        check_in_test(runs("bad", WORSE), baseline=old)
    with pytest.warns(InconclusiveWarning, match="documents would settle it"):
        check_in_test(runs("noisy", NOISY), baseline=old)


def test_a_folder_that_was_moved_is_still_read(runs, tmp_path):
    shutil.move(runs("old", RIGHT), tmp_path / "moved" / "deep")
    assert check(runs("new", RIGHT), baseline=tmp_path / "moved").verdict == "pass"
