"""`latentref run`: a mistake in its arguments is one line, before any model is loaded."""

from __future__ import annotations

import json
import logging
import sqlite3

import lm_eval.tasks
import pytest

from lm_eval_latentref import LatentRefError, cli
from lm_eval_latentref.benchmarks.documents import tasks_path
from lm_eval_latentref.harness import command, door
from lm_eval_latentref.harness.lm_eval_seams import parse_run
from lm_eval_latentref.harness.model import LatentRefLM

TASK = "latentref_prosqa_generated"
FEW = ["--metadata", json.dumps({"num_documents": 4})]


@pytest.fixture(autouse=True)
def only_our_tasks(monkeypatch):
    """lm-eval's own thousands of task files are not indexed."""
    manager = lm_eval.tasks.TaskManager

    def ours(**options):
        return manager(**{**options, "include_defaults": False})

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", ours)


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(LatentRefLM, "open_models", load)


def run(*words, tasks=TASK):
    return command.run(["--tasks", tasks, *FEW, *words])


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--limit", "0"], ["--limit 0", "1 or more"]),
        (["--limit", "-3"], ["--limit -3"]),
        (["--num_fewshot", "-1"], ["--num_fewshot -1", "0 or more"]),
        (["--limit", "nan"], ["--limit nan"]),
        (["--limit", "1e30"], ["--limit 1e+30"]),
        (["--samples", '{"latentref_prosqa_generated": [4]}'], ["no document 4", "0 to 3"]),
        (["--samples", '{"latentref_prosqa_generated": [-1]}'], ["no document -1"]),
        (["--samples", '{"latentref_prosqa_generated": "all"}'], ["list of document numbers"]),
        (["--samples", '{"latentref_graph": [0]}'], ["latentref_graph", "is not among --tasks"]),
        (["--samples", "[1]"], ["--samples", "JSON"]),
        (["--gen_kwargs", "foo=3,max_gen_toks=8"], ["foo=", "generation"]),
        (["--gen_kwargs", "num_beam=3"], ["num_beam=", "num_beams?"]),
        (["--device", "nowhere"], ["device=nowhere", "cpu"]),
        (["--device", "cuda:77"], ["device=cuda:77", "device=cpu"]),
        (["--batch_size", "many"], ["batch_size=many"]),
        (["--model_args", "max_length=many"], ["max_length=many", "an integer"]),
        (["--model_args", "max_length=0"], ["max_length=0"]),
        (["--model_args", "batch_size=3"], ["give --batch_size 3 instead"]),
        (["--model_args", "truncation=perhaps"], ["truncation=perhaps", "True or False"]),
        (["--model_args", "backend=other"], ["backend=other", "'causal'"]),
        (["--gen_kwargs", "temperature=hot"], ["temperature=hot", "could not convert"]),
        (["--gen_kwargs", "temperature=-1,do_sample=True"], ["strictly positive"]),
        (["--gen_kwargs", "do_sample=True"], ["temperature", "strictly positive"]),
        (["--gen_kwargs", "do_sample=True,temperature=1,top_k=many"], ["top_k"]),
        (["--gen_kwargs", "max_gen_toks=0"], ["must be 1 or more"]),
        (["--gen_kwargs", "until=3"], ["until=[3] must be a list of texts"]),
        (["--include_path", "nowhere"], ["--include_path nowhere", "no such folder"]),
        (["--verbosity", "loud"], ["--verbosity LOUD", "DEBUG"]),
        (["--gen_kwargs", "{bad"], ["Invalid JSON: {bad"]),
        (["--model", "latentreff"], ["--model latentreff", "did you mean latentref?"]),
        (["--model", "hf"], ["--model hf needs pretrained", "--model_args pretrained="]),
        (["--check_integrity"], ["--check_integrity", "leave it out"]),
        (["--log_samples"], ["--output_path"]),
        (["--config", "nowhere.yaml"], ["--config nowhere.yaml", "not found"]),
        (["--output_path", "/dev/null/out"], ["/dev/null/out", "cannot be written"]),
        (["--output_path", "/dev/null/out.json"], ["/dev/null/out.json", "cannot be written"]),
        (["--use_cache", "/dev/null/answers"], ["/dev/null/answers_rank0.db", "cannot be written"]),
    ],
)
def test_a_mistake_in_the_arguments(words, parts):
    with pytest.raises(LatentRefError) as error:
        run(*words)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("tasks", "parts"),
    [
        ("latentref_prosqa_generate", ["latentref_prosqa_generate:", "latentref_prosqa_generated"]),
        ("no_such_thing_at_all_xyz", ["no_such_thing_at_all_xyz", "lm_eval ls tasks"]),
        ("", ["--tasks: name at least one task"]),
        (",", ["--tasks: name at least one task"]),
        ("nowhere.yaml", ["nowhere.yaml", "no such task"]),
        ("BROKEN/task.yaml", ["task.yaml cannot be read"]),
        ("BROKEN", ["task.yaml cannot be read"]),
        (f"{TASK},BROKEN", ["cannot be combined with other tasks; give --include_path"]),
        (f"{TASK},latentref_hop", ["latentref_hop", "latentref_graph"]),
        ("latentref,latentref_gsm8k", ["latentref and latentref_gsm8k", "give one of them"]),
    ],
)
def test_a_mistake_in_the_names_of_tasks(tmp_path, tasks, parts):
    (tmp_path / "task.yaml").write_text("task: [")
    with pytest.raises(LatentRefError) as error:
        run(tasks=tasks.replace("BROKEN", str(tmp_path)))
    for part in parts:
        assert part in str(error.value)


def test_data_that_are_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("LATENTREF_DATA", str(tmp_path))
    with pytest.raises(LatentRefError, match="LATENTREF_DATA"):
        run(tasks="latentref_mathqa")


def test_a_chat_template_that_the_tokenizer_does_not_have(folders):
    with pytest.raises(LatentRefError, match="no chat template"):
        run("--model_args", f"pretrained={folders['marked']}", "--apply_chat_template")


def test_a_cache_with_anything_but_answers_is_refused_before_lm_eval_opens_it(tmp_path):
    (tmp_path / "answers_rank3.db").write_bytes(b"no database" * 100)
    with pytest.raises(LatentRefError, match=r"answers_rank3\.db is damaged .* delete it"):
        run("--use_cache", str(tmp_path / "answers"))


def test_what_is_right_passes_without_a_word(caplog, capsys, folders, tmp_path):
    words = ["--samples", json.dumps({TASK: [0, 3]}), "--device", "cpu", "--batch_size", "auto:2"]
    words += [
        "--gen_kwargs",
        "max_gen_toks=4,until=x,top_k=3",
        "--output_path",
        str(tmp_path / "o"),
    ]
    args, _ = parse_run(["--model", "latentref", "--tasks", TASK, *FEW, *words])
    args.include_path = [str(tasks_path())]
    with caplog.at_level(logging.WARNING):
        door.check(args)
    assert not caplog.records
    assert capsys.readouterr() == ("", "")


def test_ctrl_c_says_whether_anything_is_kept(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(door, "check", interrupted)
    for words, said in ((["--use_cache", "out/c"], "out/c_rank*.db"), ([], "nothing is kept")):
        assert cli.main(["run", "--tasks", TASK, *FEW, *words]) == 130
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("interrupted: ")
        assert said in line


def test_a_checkpoint_that_another_model_does_not_find_is_one_line(capsys, tmp_path):
    name = str(tmp_path / "nowhere")
    words = ["--tasks", TASK, *FEW, "--model", "hf", "--model_args", f"pretrained={name}"]
    assert cli.main(["run", *words, "--device", "cpu"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("--model hf: ")
    assert name in line


def test_a_disk_that_fills_up_under_the_cache_names_the_file(monkeypatch, capsys):
    from lm_eval._cli import HarnessCLI

    def execute(self, args):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(HarnessCLI, "execute", execute)
    monkeypatch.setattr(door, "check", lambda args: None)
    assert cli.main(["run", "--tasks", TASK, "--use_cache", "out/c"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "--use_cache: out/c_rank*.db cannot be written (database or disk is full)"
    )


def test_a_disk_that_is_full_is_status_one(monkeypatch, capsys, tmp_path):
    resource = pytest.importorskip("resource")
    from lm_eval._cli import HarnessCLI
    from lm_eval.loggers import EvaluationTracker

    def execute(self, args):
        tracker = EvaluationTracker(output_path=str(tmp_path))
        tracker.general_config_tracker.model_name_sanitized = "m"
        tracker.date_id = "2026-01-01T00-00-00.000000"
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        try:
            sample = {"doc_id": 0, "doc": "x" * 1_000_000, "resps": [], "filtered_resps": []}
            sample |= {"arguments": [], "target": "y"}
            tracker.save_results_samples(task_name="task", samples=[sample])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(HarnessCLI, "execute", execute)
    monkeypatch.setattr(door, "check", lambda args: None)
    assert command.run(["--tasks", TASK, "--output_path", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "results could not be written (Could not save sample results" in err
    assert "File too large" in err


def test_a_file_of_results_that_cannot_be_written_is_status_one(monkeypatch, capsys, tmp_path):
    from lm_eval._cli import HarnessCLI
    from lm_eval.loggers import EvaluationTracker

    def execute(self, args):
        tracker = EvaluationTracker(output_path=str(tmp_path / "taken.txt"))
        tracker.general_config_tracker.model_name_sanitized = "m"
        tracker.save_results_aggregated(results={}, samples={})

    (tmp_path / "taken.txt").write_text("a file in the place of the folder")
    monkeypatch.setattr(HarnessCLI, "execute", execute)
    monkeypatch.setattr(door, "check", lambda args: None)
    assert command.run(["--tasks", TASK, "--output_path", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "results could not be written" in err
    assert "NotADirectoryError" in err
