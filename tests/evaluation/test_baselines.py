"""Baselines of `latentref check`: files in vLLM's form, and what an update changes of them."""

from __future__ import annotations

import errno

import pytest
import yaml
from check_runs import NOISY, NUM, RIGHT, WORSE, runs
from lm_eval_files import write_run

from lm_eval_latentref.cli import main
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.check import check
from lm_eval_latentref.evaluation.gate import update_baseline

__all__ = ["runs"]

VLLM = """\
# how it was measured
model_name: "org/model"
env_vars:
  SOME_SWITCH: "1"
tasks:
- name: "t"
  metrics:
  - name: "acc,none"
    value: 0.75  # of the first run
limit: 400
num_fewshot: 0
"""


@pytest.fixture
def vllm(tmp_path):
    """Writes a baseline file in vLLM's form, with changes to its text."""

    def written(*changes):
        text = VLLM
        for old, new in changes:
            text = text.replace(old, new)
        (tmp_path / "baseline.yaml").write_text(text, encoding="utf-8")
        return tmp_path / "baseline.yaml"

    return written


@pytest.mark.parametrize(
    ("right", "changes", "options", "verdict"),
    [
        (300, (), {}, "pass"),
        (276, (), {}, "pass"),  # 0.69, which is 0.75 * (1 - 0.08)
        (275, (), {}, "fail"),
        (295, (("limit", "rtol: 0.01\nlimit"),), {}, "fail"),
        (290, (("limit", "atol: 0.025\nlimit"),), {}, "pass"),
        (289, (("limit", "atol: 0.025\nlimit"),), {}, "fail"),
        (290, (("  # of", "\n    max_drop: 0.02  # of"),), {}, "fail"),
        (290, (("  # of", "\n    max_drop: 0.02  # of"),), {"max_drop": 0.03}, "pass"),
        (400, (), {}, "pass"),
    ],
)
def test_a_file_is_compared_by_its_tolerance(runs, vllm, right, changes, options, verdict):
    values = [1.0] * right + [0.0] * (NUM - right)
    report = check(runs("new", values, log_samples=False), baseline=vllm(*changes), **options)
    assert report.verdict == verdict
    assert ("better" in report.results[0].reason) == (right == 400)


@pytest.mark.parametrize(
    ("changes", "available", "reason"),
    [
        ((("num_fewshot: 0", "num_fewshot: 5"),), NUM, "num_fewshot: 0, but 5"),
        ((("limit: 400", "limit: 250"),), NUM, "documents (--limit): 400, but 250"),
        ((("limit: 400", "limit: 1000"),), NUM, None),  # the task has no more
        ((("limit: 400", "limit: null"),), 1000, "documents (--limit): 400, but 1000"),
        ((("limit: 400", "limit: 0.4"),), 1000, None),
        ((("limit: 400\n", ""),), 1000, None),
        ((("num_fewshot: 0\n", ""),), NUM, None),
        ((('"t"', '"u"'),), NUM, "the candidate has no such task"),
        ((("acc,none", "acc,other"),), NUM, "the candidate has no such metric"),
    ],
)
def test_a_file_names_the_work_that_was_done(runs, vllm, changes, available, reason):
    new = runs("new", RIGHT, available=available)
    (result,) = check(new, baseline=vllm(*changes)).results
    assert result.verdict == ("pass" if reason is None else "fail")
    assert (reason or "") in result.reason


def test_a_group_of_a_file_is_found(runs, vllm):
    results = {"t": {"acc,none": 0.75, "acc_stderr,none": 0.02}, "s": {"acc,none": 0.75}}
    groups = {"results": results, "group_subtasks": {"t": ["s"]}, "config": {"limit": 400.0}}
    new = runs("new", {"s": {"acc": RIGHT}}, log_samples=False, **groups)
    assert check(new, baseline=vllm()).verdict == "pass"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold KEY: VALUE"),
        ("- a", "must hold KEY: VALUE"),
        ("tasks: [", "cannot be read"),
        ("tasks: []", "names no metric"),
        ("tasks: gsm8k", "`tasks` must be a list"),
        ("tasks: [{name: t, metrics: [acc]}]", "`metrics` must be a list"),
        ("tasks: [{name: t, metrics: [{name: acc}]}]", "has no value"),
        ("tasks: [{name: t, metrics: [{name: acc, value: high}]}]", "must be a number"),
        ("tasks: [{name: t, metrics: [{name: acc, value: .nan}]}]", "must be a number"),
        ("num_fewshot: 5.5\ntasks: [{name: t, metrics: [{name: a, value: 1}]}]", "whole number"),
        ("tasks: [{name: t, metrics: [{name: acc, value: 1, max_dorp: 1}]}]", "has max_dorp"),
        ("rtol: -1\ntasks: [{name: t, metrics: [{name: acc, value: 1}]}]", "rtol: -1"),
    ],
)
def test_a_file_of_another_format_is_an_error_of_one_line(runs, tmp_path, capsys, text, message):
    (tmp_path / "b.yaml").write_text(text, encoding="utf-8")
    words = ["check", str(runs("new", RIGHT)), "--baseline", str(tmp_path / "b.yaml")]
    assert main(words) == 3
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_an_update_changes_the_values_of_a_file_and_nothing_else(runs, vllm, capsys):
    path = vllm(("value: 0.75", "stderr: 0.5\n    value: 0.75"))
    assert main(["check", str(runs("new", WORSE)), "--baseline", str(path), "--update"]) == 0
    out, err = capsys.readouterr()
    assert "-0.1000" in out
    assert "now holds" in err
    before = VLLM.replace("value: 0.75", "value: 0.65").splitlines()
    after = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in after if "stderr" not in line] == before
    assert yaml.safe_load(path.read_text())["tasks"][0]["metrics"][0]["stderr"] == 0.023878
    assert check(runs("new", WORSE), baseline=path).verdict == "pass"


def test_an_update_without_a_standard_error_keeps_no_old_one(runs, vllm):
    path = vllm(("value: 0.75", "stderr: 0.5\n    value: 0.75"))
    update_baseline(runs("new", WORSE, stderr="N/A"), path)
    assert yaml.safe_load(path.read_text())["tasks"][0]["metrics"][0]["stderr"] is None
    assert check(runs("new", WORSE), baseline=path).verdict == "pass"


@pytest.mark.parametrize(
    "text",
    [
        "b: &b {value: 0.75}\ntasks: [{name: t, metrics: [{<<: *b, name: 'acc,none'}]}]",
        "b: &b {name: t}\ntasks: [{<<: *b, metrics: [{name: 'acc,none', value: 0.75}]}]",
        "tasks: [{name: t, metrics: [{name: 'acc,none', value: &v 0.75}]}]\nother: *v",
    ],
)
def test_values_that_a_file_shares_are_not_updated(runs, tmp_path, text):
    path = tmp_path / "b.yaml"
    path.write_text(text)
    with pytest.raises(LatentRefError, match="write each value out"):
        update_baseline(runs("new", WORSE), path)
    assert path.read_text() == text
    assert check(runs("new", RIGHT), baseline=path).verdict == "pass"


def test_an_update_by_other_work_is_refused(runs, vllm):
    path = vllm(("limit: 400", "limit: 100"))
    with pytest.raises(LatentRefError, match="is not updated: t acc,none: documents"):
        update_baseline(runs("new", WORSE), path)
    assert "0.75" in path.read_text()


def test_a_new_file_holds_everything_that_was_measured(runs, tmp_path):
    path = tmp_path / "kept" / "new.yaml"
    new = runs("new", {"s": {"acc": RIGHT, "acc_norm": WORSE}, "t": {"acc": NOISY}})
    path.parent.mkdir()
    assert main(["check", str(new), "--baseline", str(path), "--update"]) == 0
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [task["name"] for task in content.pop("tasks")] == ["s", "t"]
    assert content == {"model_name": "org/model", "limit": None, "num_fewshot": 0}
    report = check(new, baseline=path)
    assert report.verdict == "pass"
    assert len(report.results) == 3
    cut = runs("cut", {"s": {"acc": RIGHT[:99], "acc_norm": WORSE[:99]}}, available=NUM)
    assert "--limit" in check(cut, baseline=path).results[0].reason


def test_an_updated_folder_holds_the_candidates_files(runs, tmp_path):
    old = runs("old", RIGHT)
    (old / "notes.txt").write_text("kept")
    new = tmp_path / "new"
    write_run(new / "model", {"t": {"acc": WORSE}}, date="2026-01-02T10-00-00.000001")
    for folder in (old, tmp_path / "made"):
        update_baseline(new, folder)
        report = check(new, baseline=folder)
        assert (report.verdict, report.results[0].reason) == ("pass", "no document changed")
        assert len(list(folder.glob("*.json*"))) == 2
    assert (old / "notes.txt").exists()


def test_a_full_disk_during_an_update_leaves_no_incomplete_file(runs, tmp_path, monkeypatch):
    old, new = runs("old", RIGHT), tmp_path / "new"
    write_run(new / "model", {"t": {"acc": WORSE}}, date="2026-01-02T10-00-00.000001")
    before = sorted(old.iterdir())

    def fill_up(source, target):
        target.write_bytes(source.read_bytes()[:50])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", fill_up)
    with pytest.raises(LatentRefError, match=r"old cannot be written \(No space left on device\)"):
        update_baseline(new, old)
    assert sorted(old.iterdir()) == before


def test_files_of_the_same_name_are_refused_as_a_baseline_folder(runs, tmp_path):
    for task in ("s", "t"):
        file = write_run(tmp_path / "new" / task, {task: {"acc": RIGHT}}, log_samples=False)
        file.rename(file.with_name("results.json"))
    with pytest.raises(LatentRefError, match="several files of one name"):
        update_baseline(tmp_path / "new", tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
