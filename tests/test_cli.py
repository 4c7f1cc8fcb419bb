"""The `latentref` command: arguments passed to the library, output, and exit status."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

import lm_eval_latentref
from lm_eval_latentref import cli
from lm_eval_latentref.__main__ import main as guarded
from lm_eval_latentref.benchmarks import published
from lm_eval_latentref.benchmarks.documents import tasks_path
from lm_eval_latentref.benchmarks.generators import GENERATORS
from lm_eval_latentref.cli import main, options
from lm_eval_latentref.cli.parser import parser
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation import demo, study_options, sweep
from lm_eval_latentref.harness import command as harness
from lm_eval_latentref.harness import door


@pytest.fixture
def fake_load(monkeypatch):
    """Stands in for `reasoner.load`: notes its arguments; the answer repeats the question."""
    seen = SimpleNamespace(arguments=None, error=None)

    def load(**arguments):
        seen.arguments = arguments
        if seen.error is not None:
            raise seen.error
        return SimpleNamespace(ask=ask)

    def ask(question, *, max_new_tokens=None):
        seen.max_new_tokens = max_new_tokens
        return SimpleNamespace(text=f"{question}!", thoughts=torch.full((2, 4), 3.0))

    module = ModuleType("lm_eval_latentref.checkpoints.loading")
    module.load = load
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return seen


@pytest.fixture
def executed(monkeypatch):
    """What lm-eval's command line would have executed, in place of checking and executing it."""
    from lm_eval._cli import HarnessCLI

    seen = []
    monkeypatch.setattr(HarnessCLI, "execute", lambda self, args: seen.append(args))
    monkeypatch.setattr(door, "check", lambda args: None)
    return seen


def test_ask_prints_the_answer_alone(fake_load, capsys):
    assert main(["ask", "why?"]) == 0
    assert capsys.readouterr() == ("why?!\n", "")
    assert (fake_load.arguments, fake_load.max_new_tokens) == ({}, None)


def test_ask_shows_the_thoughts_when_asked_to(fake_load, capsys):
    assert main(["ask", "why?", "--show-thoughts", "--max_new_tokens", "7"]) == 0
    assert capsys.readouterr().out == "thought 1: norm 6.000\nthought 2: norm 6.000\nwhy?!\n"
    assert fake_load.max_new_tokens == 7


def test_an_option_of_its_own_wins_over_model_args(fake_load):
    words = ["--model_args", "pretrained=a,latent_steps=3", "dtype=float32", "--pretrained", "b"]
    assert main(["ask", "why?", *words]) == 0
    assert fake_load.arguments == {"pretrained": "b", "latent_steps": 3, "dtype": "float32"}


def test_model_args_without_a_value_are_a_mistake(fake_load, capsys):
    assert main(["ask", "why?", "--model_args", "gpt2"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("--model_args gpt2: each argument is NAME=VALUE")
    assert err.count("\n") == 1


def test_a_mistake_is_one_line_and_status_two(fake_load, capsys):
    fake_load.error = LatentRefError("latent_steps=-1: give a whole number from 0 up")
    assert main(["ask", "why?"]) == 2
    assert capsys.readouterr() == ("", "latent_steps=-1: give a whole number from 0 up\n")


def test_a_bug_of_ours_keeps_its_traceback(fake_load):
    fake_load.error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        main(["ask", "why?"])


def test_convert_passes_checkpoints_settings_and_folder_on(monkeypatch):
    seen = []
    module = ModuleType("lm_eval_latentref.checkpoints.convert")
    module.convert = lambda **options: seen.append(options)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    given = ["--pretrained", "gpt2", "--weights", "checkpoint_41", "--latent_steps", "6"]
    assert main(["convert", *given, "--tuned_on", "mathqa dev", "-o", "c"]) == 0
    names = {"pretrained": "gpt2", "weights": "checkpoint_41", "latent_steps": "6"}
    assert seen == [{"out": "c", "adapter": False, "tuned_on": "mathqa dev", **names}]


def test_tasks_path_prints_a_folder_that_exists(capsys):
    assert main(["tasks-path"]) == 0
    assert capsys.readouterr().out == f"{tasks_path()}\n"
    assert tasks_path().is_dir()


def test_run_hands_everything_to_lm_eval_and_adds_our_tasks(executed):
    words = ["--model", "latentref", "--tasks", "a,b", "--model_args", "latent_steps=2"]
    assert main(["run", *words]) == 0
    (args,) = executed
    assert (args.command, args.model, args.tasks) == ("run", "latentref", ["a", "b"])
    assert args.include_path == [str(tasks_path())]


def test_run_without_a_model_means_ours(executed):
    assert main(["run", "--tasks", "a"]) == 0
    assert main(["run", "--tasks", "a", "--model", "hf"]) == 0
    assert [args.model for args in executed] == ["latentref", "hf"]


def test_the_help_of_run_names_the_default_model_that_a_run_gets(capsys):
    for arguments in (["run", "--help"], ["run"]):
        with pytest.raises(SystemExit, match=r"^0$"):
            main(arguments)
        assert "Model name (default: latentref)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("where", ["option", "config"])
def test_run_keeps_the_folder_the_user_includes(executed, tmp_path, where):
    words = ["--include_path", str(tmp_path)]
    if where == "config":
        config = tmp_path / "run.yaml"
        config.write_text(f"include_path: {tmp_path}\n")
        words = ["--config", str(config)]
    assert main(["run", "--tasks", "a", *words]) == 0
    assert executed[0].include_path == [str(tasks_path()), str(tmp_path)]


def test_run_prints_a_mistake_alone(monkeypatch, capsys):
    def mistaken(arguments):
        raise LatentRefError("memory_rate=2: give a value from 0 to 1")

    monkeypatch.setattr(harness, "run", mistaken)
    assert main(["run", "--model", "latentref"]) == 2
    assert capsys.readouterr() == ("", "memory_rate=2: give a value from 0 to 1\n")


def test_help_names_every_subcommand_and_loads_nothing_heavy():
    code = "import sys; from lm_eval_latentref.cli import main\n"
    code += "try: main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(name in out for name in ("run", "tasks-path", "ask", "convert", "demo"))
    assert out.endswith("False\n")


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{lm_eval_latentref.__version__}\n"


@pytest.mark.parametrize(
    ("readable", "task"), [(True, demo.REAL_TASK), (False, demo.GENERATED_TASK)]
)
def test_the_demo_takes_real_data_where_it_can(monkeypatch, readable, task):
    def read(name, split):
        if not readable:
            raise published.DataMissingError(f"{name} {split}: no download")

    monkeypatch.setattr(published, "read", read)
    assert demo.choose_task() == task


def test_the_demo_runs_the_command_it_prints(monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(demo, "choose_task", lambda: demo.REAL_TASK)
    monkeypatch.setattr(
        demo.subprocess,
        "run",
        lambda command, **_: ran.append(command) or SimpleNamespace(returncode=3),
    )
    assert main(["demo", "--smollm2", "--output", "somewhere", "--limit", "4"]) == 3
    assert capsys.readouterr().out == f"$ {' '.join(ran[0][2:])}\n"
    assert ran[0][:2] == [sys.executable, "-m"]
    assert ran[0][-6:] == ["--limit", "4", "--batch_size", "8", "--output_path", "somewhere"]


def test_the_demos_report_has_its_results_and_the_command(tmp_path):
    numbers = {"acc,none": 0.25, "acc_stderr,none": 0.0625, "alias": "task"}
    results = {"results": {"task": numbers}, "n-samples": {"task": {"effective": 4}}, "config": {}}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "results_1.json").write_text(json.dumps(results))
    demo.write_report(tmp_path, "lm_eval run --tasks task", "task", since=0.0)
    text = (tmp_path / "README.md").read_text()
    for part in ("$ lm_eval run --tasks task", "| acc | 0.2500 | 0.0625 |"):
        assert part in text
    assert "first 4 documents" in text
    assert str(tmp_path) not in text


def test_every_option_may_be_written_with_hyphens_or_underscores():
    (commands,) = (each for each in parser()._actions if each.choices)
    for name, command in commands.choices.items():
        for action in command._actions:
            flags = {flag for flag in action.option_strings if flag.startswith("--")}
            twins = {f"--{flag[2:].replace('_', '-')}" for flag in flags}
            assert flags >= twins, (name, flags)
            assert all(f"--{flag[2:].replace('-', '_')}" in flags for flag in flags), (name, flags)


def test_step_sizes_are_units_of_half_d_with_the_unit_or_without():
    sizes = ["-0.3", "0.3*d/2", "-1*d/2", "1"]
    words = ["sweep", "--task", "t", "-o", "o", "--step_sizes", *map(cli.no_flag, sizes)]
    assert parser().parse_args(words).step_sizes == [-0.3, 0.3, -1.0, 1.0]
    with pytest.raises(LatentRefError, match=r"a finite number such as 20, or 0\.3\*d/2"):
        parser().parse_args([*words, "0.3*w"])


@pytest.mark.parametrize(
    ("words", "status", "part"),
    [
        ([], 2, "COMMAND"),
        (["blue"], 2, "'ask'"),
        (["ask"], 2, "question"),
        (["ask", "q", "r"], 2, "unrecognized arguments: r; see `latentref ask --help`"),
        (["ask", "q", "--pretrainde", "x"], 2, "--pretrainde"),
        (["ask", "q", "--max_new_tokens", "many"], 2, "--max_new_tokens"),
        (["data", "graph", "--num", "3.5", "-o", "d.json"], 2, "--num"),
        (["sweep", "--task", "t"], 2, "--output"),
        (["sweep", "--task", "t", "-o", "s", "--memory_rates", "half"], 2, "--memory_rates"),
        (["sweep", "--task", "t", "-o", "s", "--step_sizes", "inf"], 2, "search_step_size"),
        (["compare", "a"], 2, "second"),
        (["leaderboard"], 3, "RESULTS"),
        (["leaderboard", "a", "--watch", "often"], 3, "--watch"),
        (["check", "a", "--format", "xml"], 3, "'junit'"),
    ],
)
def test_wrong_words_are_one_line_that_names_the_help(capsys, words, status, part):
    assert main(words) == status
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    assert part in line
    assert "; see `latentref" in line


def test_every_help_says_what_each_option_is_for_and_what_the_status_means():
    (commands,) = (each for each in parser()._actions if each.choices)
    for name, command in commands.choices.items():
        assert "Exit status: " in command.format_help()
        for action in command._actions:
            assert action.help, (name, action.dest)
            has_default = action.option_strings and action.default not in (None, [], (), False)
            if has_default and action.dest not in ("help", "margins"):
                assert "default" in action.help, (name, action.dest)


def test_the_help_says_the_values_that_are_tried_by_default():
    for name in ("memory_rates", "step_sizes"):
        tried = [getattr(module, name.upper()) for module in (sweep, study_options)]
        swept, studied = (" ".join(map(str, values)) for values in tried)
        assert f"(default: {swept}, in a study {studied})" in options.OPTIONS[name]["help"]


def test_the_help_of_data_names_every_generator():
    (commands,) = (each for each in parser()._actions if each.choices)
    (task,) = (each for each in commands.choices["data"]._actions if each.dest == "task")
    assert re.findall(r"\w+", task.help) == [*list(GENERATORS)[:-1], "or", list(GENERATORS)[-1]]


@pytest.mark.parametrize("code", ["raise KeyboardInterrupt", "main = lambda: 130"])
def test_ctrl_c_is_status_130_from_the_first_line_to_the_last(monkeypatch, capsys, code):
    """While the command itself is imported, and while Python shuts down after it."""
    module, handlers = ModuleType("lm_eval_latentref.cli"), []
    monkeypatch.setattr("signal.signal", lambda *handler: handlers.append(handler))
    if code.startswith("raise"):
        finder = SimpleNamespace(find_spec=lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        monkeypatch.delitem(sys.modules, module.__name__)
        monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    else:
        exec(code, module.__dict__)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    assert guarded() == 130
    assert handlers == [(signal.SIGINT, signal.SIG_DFL)]
    assert capsys.readouterr().err.count("\n") == (1 if code.startswith("raise") else 0)


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["ask", "why?"], "nothing was written"),
        (["train", "graph-small"], "continues from the last saved state"),
        (["sweep", "--task", "x", "-o", "out"], "finished work is in the output folder"),
        (["study", "x", "--task", "x", "-o", "out"], "finished work is in the work folder"),
    ],
)
def test_ctrl_c_ends_with_130_and_one_line_that_says_what_was_kept(
    monkeypatch, capsys, arguments, kept
):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"lm_eval_latentref.cli.{arguments[0]}", interrupted)
    assert main(arguments) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("interrupted: ")
    assert kept in line


def test_work_of_different_outputs_is_kept_apart():
    outputs = ("results/a", "results-a", "/results/a", "/results/b", "../a", "../b/a", ".", "/")
    folders = {cli._work_folder("study", output) for output in outputs}
    assert len(folders) == len(outputs)
    assert all(folder.startswith("out/study/") for folder in folders)
    assert cli._work_folder("study", "x/../a/") == cli._work_folder("study", "a")


def test_text_of_models_reaches_the_terminal_without_escape_sequences(fake_load, capsys):
    assert main(["ask", "\x1b[31mred\nline"]) == 0
    assert capsys.readouterr().out == " [31mred\nline!\n"


def test_a_terminal_that_cannot_show_a_character_gets_a_question_mark(monkeypatch, fake_load):
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    assert main(["ask", "± 1"]) == 0
    assert ascii_only.buffer.getvalue() == b"? 1!\n"


@pytest.mark.parametrize("place", range(4))
def test_changes_of_a_recipe_or_generator_may_lie_anywhere(tmp_path, place):
    given = [["--num", "3"], ["-o", str(tmp_path / "d.json")], ["--seed", "4"]]
    given.insert(place, ["a=1"])
    words = ["data", "graph", *(word for words in given for word in words), "b=2"]
    args = cli.parse(words)
    assert (args.pairs, args.num, args.seed) == (["a=1", "b=2"], 3, 4)
    with pytest.raises(LatentRefError, match=r"unrecognized arguments: .*--sede"):
        cli.parse([*words, "--sede", "4"])
