"""What `latentref sweep` prints and saves."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from sweeps import (
    NUM_SETTINGS,
    TASK,
    finished,
    finished_folder,
    folders,
    stops_after,
    tasks,
)

from lm_eval_latentref.cli import main
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.plots import heat_map
from lm_eval_latentref.evaluation.report import sweep_page
from lm_eval_latentref.evaluation.sweep import save_sweep, sweep_json

__all__ = ["finished", "finished_folder", "folders", "stops_after", "tasks"]


def test_the_report_has_everything_needed_to_judge_the_sweep(finished, tmp_path):
    save_sweep(finished, tmp_path, command="latentref sweep ...")
    report = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert report["command"] == "latentref sweep ..."
    assert report["seed"] == 0
    assert {"cpu", "threads"} <= report["machine"].keys()
    assert {"torch", "python"} <= report["versions"].keys()
    assert report["model"]["strong"]["fingerprint"] != report["model"]["weak"]["fingerprint"]
    assert len(report["settings"]) == NUM_SETTINGS
    for each in report["settings"]:
        assert (
            len(each["margins"]) == len(each["correct"]) == len(report["task"]["documents"]) == 12
        )
        assert each["margin"] == pytest.approx(np.mean(each["margins"]))
    assert set(report["best"]) == {"plain", "residual", "search", "both"}
    margins = {each["label"]: each["margin"] for each in report["settings"]}
    assert report["best_of_all"] == max(margins, key=margins.get)
    assert [each["setting"] for each in report["rivals"]] != []
    assert {each["setting"] for each in report["rivals"]} == margins.keys() - {
        report["best_of_all"]
    }


def test_the_text_names_both_choices_and_the_smallest_effect(finished):
    text = sweep_page(sweep_json(finished, command=""))
    table = text.split("\n\n")[1].splitlines()
    assert len(table) == 2 + NUM_SETTINGS
    assert sum("best" in line for line in table) == 4
    assert sum("recommended" in line for line in table) == 1
    assert "Best of each row" in text
    assert "Recommended, the simplest setting within noise of the best" in text
    assert f"of {NUM_SETTINGS} settings" in text
    assert "The smallest effect that 12 documents can show" in text


def test_without_matplotlib_the_sweep_is_saved_and_one_sentence_says_what_to_install(
    finished, tmp_path, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    save_sweep(finished, tmp_path, command="")
    assert (tmp_path / "sweep.json").is_file()
    assert not (tmp_path / "sweep.png").exists()
    (record,) = (each for each in caplog.records if each.name.endswith("evaluation.sweep"))
    assert "pip install 'lm-eval-latentref[plots]'" in record.getMessage()


def test_the_map_shows_differences_to_plain_with_zero_in_the_middle_of_the_scale(
    finished, tmp_path, monkeypatch
):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    plain = finished.choice.best["plain"]
    heat_map(finished.outcomes, tmp_path / "sweep.png", plain=plain, title="")
    shown = []
    for axes in drawn[0].axes:
        for image in axes.images:
            assert image.norm(0.0) == pytest.approx(0.5)
            assert image.norm.vmax == -image.norm.vmin
            shown += [value for value in np.ravel(image.get_array().filled(np.nan))]
    expected = [outcome.margin - plain.margin for outcome in finished.outcomes]
    # With one thought, a memory rate has no effect, so both of its cells show the same setting.
    actual = {round(float(value), 9) for value in shown if not np.isnan(value)}
    assert actual == {round(value, 9) for value in expected}
    texts = [text.get_text() for axes in drawn[0].axes for text in axes.texts]
    assert len(texts) == np.sum(~np.isnan(shown))
    assert any(text.startswith("plain") for text in texts)


def words(folders, tasks, output):
    return [
        *("sweep", "--pretrained", str(folders / "backbone"), "--strong", str(folders / "strong")),
        *("--weak", str(folders / "weak"), "-a", "dtype=float32", "device=cpu,batch_size=4"),
        *("--task", TASK, "--include_path", tasks, "-o", str(output)),
        *("--latent-steps", "1", "3", "--memory-rates", "0.4", "--step-sizes", "1", "-0.5"),
    ]


def test_the_command_prints_the_table_and_ends_with_one_json_line(folders, tasks, tmp_path, capsys):
    assert main(words(folders, tasks, tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1])["task"] == TASK
    assert lines[0].startswith("riddles_dev: 12 documents, 9 settings")
    command = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))["command"]
    assert command


def test_after_ctrl_c_the_command_says_how_to_continue(
    folders, tasks, tmp_path, capsys, stops_after
):
    stops_after(2)
    assert main(words(folders, tasks, tmp_path)) == 130
    assert "the same command continues" in capsys.readouterr().err


def test_metadata_must_be_an_object(folders, tasks, tmp_path, capsys):
    assert main([*words(folders, tasks, tmp_path), "--metadata", "[1]"]) == 2
    assert "must be one JSON object" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_an_error_of_one_line(finished, tmp_path):
    (tmp_path / "sweep.json").mkdir()
    with pytest.raises(LatentRefError, match=r"sweep\.json cannot be written"):
        save_sweep(finished, tmp_path, command="")
