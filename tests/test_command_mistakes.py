"""Mistakes in the arguments of each command are one line, with the right exit status."""

from __future__ import annotations

import os

import pytest
from lm_eval_files import write_run
from tiny_checkpoints import fresh_model, save_folder

from lm_eval_latentref.cli import main


@pytest.fixture
def places(tmp_path, once_a_run, monkeypatch):
    """A model and two runs by name, in a working directory of their own."""

    def make(folder):
        save_folder(fresh_model("llama"), folder / "model", markers=False)
        write_run(folder / "a", {"t": {"acc": [0, 1, 1, 0]}})
        write_run(folder / "b", {"t": {"acc": [1, 1, 1, 0]}})
        write_run(folder / "c", {"u": {"acc": [1, 1]}})

    for folder in once_a_run("mistakes", make).iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    (tmp_path / "text.yaml").write_text("a: text\n")
    (tmp_path / "empty.jsonl").touch()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def mistake(capsys, words):
    """The exit status and the line that says what is wrong; notes on the way come before it."""
    status = main(words)
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return status, err.splitlines()[-1]


ASK = ["ask", "why?", "--pretrained", "model", "--latent_steps", "2"]
SWEEP = ["sweep", "--task", "latentref_graph_dev", "--pretrained", "model", "-o", "out"]
STUDY = ["study", "model", "--task", "latentref_graph"]
THOUGHTS = ["thoughts", "model", "--task", "latentref_graph", "-o", "out.md"]
TRAIN = ["train", "graph-small", "output=out", "num_train=8", "num_validation=8"]
CONVERT = ["convert", "--pretrained", "model", "-o", "new"]
DATA = ["data", "--num", "3", "-o", "out.json", "graph"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["ask", "\udcff", *ASK[2:]], "not a valid character; give UTF-8"),
        (["ask", " ", *ASK[2:]], "the question is empty"),
        ([*ASK, "--max_new_tokens", "0"], "give an integer, 1 or more"),
        ([*ASK, "--max_new_tokens", "999"], "lower max_new_tokens"),
        ([*ASK, "-a", "max_length=many"], "max_length=many: it must be an integer >= 1"),
        ([*ASK, "-a", "trust_remote_code=perhaps"], "it must be True or False"),
        ([*ASK, "-a", "device=nowhere"], "device=nowhere: no such kind of device"),
        ([*ASK, "-a", "device=cuda:77"], "device=cuda:77: this machine has"),
        ([*ASK, "-a", "dtype=float99"], "float99"),
        ([*ASK, "-a", "=x"], "each argument is NAME=VALUE"),
        ([*ASK, "-a", "model=x"], "did you mean pretrained?"),
        ([*ASK, "-a", "load_in_4bit=True"], "quantised"),
        ([*ASK, "--latent_steps", "1e30"], "at most 10000"),
        ([*ASK, "--memory_rate", "nan"], "memory_rate='nan'"),
        ([*ASK, "--search_step_size", "0.3*d/3"], "0.3*d/2"),
        ([*ASK, "--strong", "."], "neither config.json nor adapter_config.json"),
        ([*ASK, "--weights", "text.yaml"], "cannot be read as a state dict"),
        (["ask", "why?", "--pretrained", ""], "pretrained="),
        (["ask", "why?", "--pretrained", "text.yaml"], "is a file"),
        (["convert", "--pretrained", "model", "-o", "model"], "give a new one"),
        (["convert", "--pretrained", "model", "-o", ""], "it is empty"),
        (["convert", "--pretrained", "model", "-o", "/dev/null/x"], "cannot be written"),
        (["convert", "--pretrained", "model", "--adapter", "-o", "x"], "is not an adapter"),
        (["convert", "--pretrained", "model", "-o", "text.yaml"], "cannot be written"),
        ([*CONVERT, "-a", "dtype=int8"], "give a floating-point type"),
        ([*CONVERT, "-a", "dtype=float99"], "give a floating-point type"),
        ([*CONVERT, "-a", "foo=1"], "unknown key 'foo'"),
        ([*CONVERT, "--latent_steps", "-1"], "latent_steps=-1"),
        ([*CONVERT, "--memory_rate", "2"], "memory_rate=2"),
        ([*CONVERT, "--weights", "nowhere"], "weights=nowhere does not exist"),
        ([*CONVERT, "--strong", "nowhere"], "no checkpoint 'nowhere'"),
        (["ask", "why?", "--pretrained", "graph-smal"], "did you mean graph-small?"),
        ([*DATA, "--num", "0"], "give an integer, 1 or more"),
        ([*DATA, "--split", "dev"], "train"),
        ([*DATA, "-o", "out.txt"], "ends in .json or .jsonl"),
        ([*DATA, "-o", ""], "it is empty"),
        ([*DATA, "-o", "/dev/null/x.json"], "cannot be written"),
        ([*DATA, "nodes=many"], "nodes='many': it must be an integer"),
        ([*DATA, "nodes=99"], "from 2 to 52"),
        ([*DATA, "size=3"], "'size' is not an option of graph"),
        ([*DATA, "nodes"], "KEY=VALUE"),
        ([*DATA[:-1], "graf"], "no generated task 'graf'"),
        (["train", "nowhere.yaml"], "no such recipe"),
        (["train", "text.yaml"], "unknown key 'a'"),
        (["train", "graph-small", "output=''"], "name a folder"),
        (["train", "graph-small", "learning_rate=.inf"], "finite"),
        (["train", "graph-small", "output=out", "leraning_rate=1"], "did you mean learning_rate?"),
        (["train", "graph-small", "output=/dev/null/x"], "cannot be written"),
        (["train", "model"], "no such recipe"),
        (["train", "graph-small", "seed"], "is not KEY=VALUE"),
        (["train", "graph-small", "seed=1.5"], "seed=1.5: it must be an integer"),
        (["train", "graph-small", "seed=-1"], "give an integer from 0"),
        (["train", "graph-small", "seed=" + "9" * 400], "give an integer from 0"),
        (["train", "graph-small", "phases=[nope]"], "phases"),
        ([*TRAIN, "config.hidden_size=63"], "gives no causal language model"),
        ([*TRAIN, "config.model_type=bert"], "gives no causal language model"),
        ([*TRAIN, "config.num_attention_heads=0"], "gives no causal language model"),
        ([*TRAIN, "config.num_attention_heads=many"], "gives no causal language model"),
        (["train", "graph-small", "batch_size=0"], "batch_size=0"),
        ([*SWEEP[:-1], "/dev/null/x"], "cannot be written"),
        ([*SWEEP[:-1], "text.yaml"], "cannot be written"),
        ([*SWEEP[:-1], "x" * 300], "cannot be written"),
        ([*SWEEP, "--limit", "0"], "give an integer, 1 or more"),
        ([*SWEEP], "without thoughts there is nothing to choose"),
        ([*SWEEP, "--latent_steps", "2", "--memory_rates", "2"], "memory_rate"),
        ([*SWEEP, "--latent_steps", "2", "--search_steps", "0"], "search_steps=0"),
        ([*SWEEP, "--metadata", "[]"], "one JSON object"),
        ([*SWEEP, "--latent_steps", "2", "--include_path", "nowhere"], "no such folder of task"),
        ([*SWEEP, "--latent_steps", "2", "--metadata", '{"num_documents": "x"}'], "an integer, 1"),
        ([*SWEEP, "--step_sizes", "0.3*w"], "0.3*d/2"),
        ([*SWEEP, "--memory_rates", "nan"], "argument --memory_rates"),
        ([*SWEEP, "-a", "latent_steps=3"], "a sweep chooses this value"),
        ([*SWEEP, "--latent_steps", "2", "--task", "nope"], "no such task"),
        (["study", "model", "--task", "t", "-o", "out", "--batch_size", "0"], "1 or more"),
        ([*STUDY, "-o", "/dev/null/x"], "cannot be written"),
        ([*STUDY, "-o", "text.yaml"], "cannot be written"),
        ([*STUDY, "-o", "out", "--work", "/dev/null/x"], "argument --work"),
        ([*STUDY, "-o", "out", "--memory_rates", "2"], "argument --memory_rates"),
        ([*STUDY, "-o", "out", "--step_sizes", "inf"], "argument --step_sizes"),
        ([*STUDY, "-o", "out", "--dtype", "float99"], "argument --dtype"),
        ([*STUDY, "-o", "out", "--device", "nowhere"], "argument --device"),
        ([*STUDY, "-o", "out", "--task", "latentref_graph"], "is given twice"),
        ([STUDY[0], "model", *STUDY[1:], "-o", "out"], "model is given twice"),
        ([*STUDY, "-o", "out", "--row", "r=a", "--row", "r=b"], "row r is given twice"),
        ([*STUDY, "-o", "out", "--row", "r=a", "--contrast", "r=a,b"], "row r is given twice"),
        ([*STUDY, "-o", "out"], "has no latentref.json"),
        (["study", "", *STUDY[2:], "-o", "out"], "it is empty"),
        ([*STUDY, "-o", "out", "--task", "nope"], "nope_dev, which does not exist"),
        (["study", "nowhere", "--task", "latentref_graph", "-o", "out"], "nowhere"),
        (["thoughts", "model", "--task", "t", "-o", "out.html"], "out.html"),
        (["thoughts", "model", "--task", "t", "-o", ""], "ends in .md"),
        (["thoughts", "model", "--task", "t", "-o", "/dev/null/x.md"], "cannot be written"),
        (["thoughts", "model", "--task", "t", "-o", "model"], "ends in .md"),
        (["thoughts", "model", "--task", "t", "-o", "out.md", "--num", "0"], "1 or more"),
        ([*THOUGHTS, "--memory_rate", "nan"], "argument --memory_rate"),
        ([*THOUGHTS, "--memory_rate", "2"], "argument --memory_rate"),
        ([*THOUGHTS, "--step_size", "far"], "argument --step_size"),
        ([*THOUGHTS, "--latent_steps", "-1"], "argument --latent_steps"),
        ([*THOUGHTS, "--limit", "0"], "argument --limit"),
        ([*THOUGHTS, "--batch_size", "many"], "argument --batch_size"),
        ([*THOUGHTS, "--work", "text.yaml"], "argument --work"),
        ([*THOUGHTS], "lacks a strong or weak reference"),
        (["thoughts", "nowhere", *THOUGHTS[2:]], "nowhere"),
        (["compare", "a", "nowhere"], "nowhere"),
        (["compare", "a", "model"], "model"),
        (["compare", "a", "c"], "no task in common"),
        (["compare", "a", "b", "--metric", "f1"], "f1"),
        (["compare", "a", "b", "--seed", "-1"], "give an integer, 0 or more"),
        (["compare", "text.yaml", "b"], "text.yaml"),
        (["compare", "a"], "the following arguments are required: second"),
        (["compare", "a", "b", "c"], "unrecognized arguments: c"),
        (["compare", "", "b"], "it is empty"),
        (["compare", "empty.jsonl", "b"], "holds no samples"),
        (["compare", "a", "b::plain"], "there is no samples_*.jsonl and no sweep.json"),
        (["compare", "a", "b", "--seed", "many"], "give an integer, 0 or more"),
        (["demo", "-o", "/dev/null/x"], "cannot be written"),
        (["demo", "-o", "text.yaml"], "cannot be written"),
        (["demo", "--limit", "0"], "give an integer, 1 or more"),
        (["demo", "--limit", "-1"], "give an integer, 1 or more"),
        (["demo", "--limit", "1.5"], "give an integer, 1 or more"),
        (["demo", "--limit", "1e3"], "give an integer, 1 or more"),
        (["demo", "--limit"], "expected one argument"),
        (["demo", "-o"], "expected one argument"),
        (["demo", "-o", " "], "it is empty"),
        (["demo", "-o", "x" * 300], "cannot be written"),
        (["demo", "--smolm2"], "unrecognized arguments: --smolm2"),
        (["demo", "model"], "unrecognized arguments: model"),
        (["tasks-path", "x"], "unrecognized arguments: x"),
    ],
    ids=lambda value: " ".join(value[:1]) if isinstance(value, list) else None,
)
def test_a_mistake_is_status_two_and_one_line(places, capsys, words, part):
    status, line = mistake(capsys, words)
    assert status == 2
    assert part in line


LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        ["ask", "why?", "--pretrained", "a/" * 3000],
        [*ASK, "--strong", LONG, "--weak", LONG],
        ["compare", "a", LONG],
        ["leaderboard", "a", LONG],
        ["leaderboard", "a", "-o", f"{LONG}.html"],
        ["check", LONG, "--baseline", "a"],
        ["train", LONG],
        ["study", LONG, "--task", "latentref_graph", "-o", "out"],
        ["study", "model", "--task", LONG, "-o", "out"],
        [*SWEEP, "--latent_steps", "2", "--include_path", LONG],
    ],
    ids=lambda words: words[0],
)
def test_a_name_that_is_too_long_is_one_short_line(places, capsys, words):
    status, line = mistake(capsys, words)
    assert status == (3 if words[0] in ("leaderboard", "check") else 2)
    assert "File name too long" in line
    assert len(line) < 400


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["leaderboard", "nowhere"], "nowhere"),
        (["leaderboard", "model"], "model"),
        (["leaderboard", "pipe"], "no such file or folder"),
        (["check", "a", "--baseline", "pipe"], "pipe"),
        (["leaderboard", "a", "b", "--metric", "f1"], "one of acc, acc,none"),
        (["leaderboard", "a", "b", "--baseline", "d"], "d"),
        (["leaderboard", "a", "b", "-o", "board.pdf"], ".html"),
        (["leaderboard", "a", "b", "-o", "/dev/null/b.md"], "cannot be written"),
        (["leaderboard", "a", "b", "--eval_results", "/dev/null/e"], "argument --eval_results"),
        (["leaderboard", "a", "b", "-o", ""], "it is empty"),
        (["leaderboard", ""], "it is empty"),
        (["leaderboard", "a", "x="], "it is empty"),
        (["leaderboard", "a", "b", "--watch", "-1"], "above 0"),
        (["leaderboard", "a", "b", "--watch", "nan"], "above 0"),
        (["leaderboard", "a", "b", "--allow_different", "hair"], "hair"),
        (["check", "nowhere", "--baseline", "a"], "nowhere"),
        (["check", "a"], "baseline"),
        (["check", "a", "--baseline", "nowhere"], "nowhere"),
        (["check", "a", "--baseline", "text.yaml"], "text.yaml"),
        (["check", "a", "--baseline", "b", "--max_drop", "-1"], "max_drop"),
        (["check", "a", "--baseline", "b", "--max_drop", "nan"], "max_drop"),
        (["check", "a", "--baseline", "b", "--significance", "0"], "significance"),
        (["check", "a", "--baseline", "b", "--show_flips", "-1"], "0 or more"),
        (["check", "a", "--golden", "nowhere.json"], "nowhere.json"),
        (["check", "a", "--golden", "text.yaml"], "text.yaml"),
        (["check", "a", "--write_golden"], "golden"),
        (["check", "a", "--update"], "baseline"),
    ],
    ids=lambda value: " ".join(value[:1]) if isinstance(value, list) else None,
)
def test_a_mistake_of_a_gate_or_a_board_is_status_three_and_one_line(places, capsys, words, part):
    status, line = mistake(capsys, words)
    assert status == 3
    assert part in line
