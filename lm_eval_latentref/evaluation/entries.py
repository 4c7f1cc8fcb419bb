"""Makes the rows of a leaderboard from runs: names, settings, costs, and commands to repeat them.

    entries, left_out = entries_of(["results/", "plain=results/no_cot"], notes)
    entries[0].name, entries[0].cost["seconds_per_document"], entries[0].command

`board` compares the rows.
"""

from __future__ import annotations

import datetime
import functools
import json
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_latentref.benchmarks.documents import tasks_path
from lm_eval_latentref.errors import without_secrets
from lm_eval_latentref.evaluation.results import Problem, Results, Run, Task, read_results
from lm_eval_latentref.evaluation.wording import plain, short_name

SETTINGS = {
    "latent_steps": "T",
    "latent_kind": "kind",
    "memory_rate": "alpha",
    "search_step_size": "eta",
    "search_steps": "S",
}
"""The settings of a latent model that tables show, with the heading of each column."""
_SEEDS = ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")
_PHASES = ("encode", "think", "decode")


@dataclass(kw_only=True)
class Entry:
    """One row: a run, or several runs under one name (tasks run one by one, or seeds)."""

    name: str
    runs: list[Run]

    @functools.cached_property
    def tasks(self) -> dict[str, list[Task]]:
        """For each task, its results in every run that has it."""
        names = dict.fromkeys(task for run in self.runs for task in run.tasks)
        return {name: [r.tasks[name] for r in self.runs if name in r.tasks] for name in names}

    @property
    def model(self) -> str:
        """lm-eval's names of model class and model: "hf gpt2"."""
        return f"{self.model_class} {plain(self.runs[0].name)}".strip()

    @property
    def model_class(self) -> str:
        """lm-eval's name of the model class: hf, vllm, latentref, ..."""
        return plain(self.runs[0].model)

    @property
    def device(self) -> str | None:
        """The devices of the runs, separated by commas if they differ; None if not recorded."""
        return _joined(run.device for run in self.runs)

    @property
    def dtype(self) -> str | None:
        """The dtypes of the runs, separated by commas if they differ; None if not recorded."""
        return _joined(run.dtype for run in self.runs)

    @property
    def settings(self) -> dict[str, Any]:
        """The options of a latent model that influence its answers; empty for other models."""
        recorded = self.runs[0].settings
        names = (*SETTINGS, "search_gradient", "latent_markers")
        return {name: recorded[name] for name in names if name in recorded}

    @property
    def checkpoints(self) -> dict[str, str]:
        """For each role, the checkpoint's name and its fingerprint or revision."""
        run = self.runs[0]
        recorded = [(role, run.settings.get(role)) for role in ("backbone", "strong", "weak")]
        own = {
            role: f"{plain(checkpoint.get('name'))} {str(checkpoint.get('fingerprint'))[:12]}"
            for role, checkpoint in recorded
            if isinstance(checkpoint, Mapping)
        }
        revision = run.config.get("model_sha") or run.config.get("model_revision")
        return own or {"model": plain(f"{run.name} {revision or ''}")}

    @property
    def made_with(self) -> dict[str, Any]:
        """Versions, data, date, device and dtype."""
        names = dict.fromkeys(name for run in self.runs for name in run.versions)
        versions = {n: _joined(run.versions.get(n) for run in self.runs) for n in names}
        return {
            "versions": {plain(name): plain(value) for name, value in versions.items()},
            "data": {k: v for run in self.runs for k, v in _data_hashes(run).items()},
            "date": _joined(_day(run.date) for run in self.runs),
            "device": self.device and plain(self.device),
            "dtype": self.dtype and plain(self.dtype),
        }

    @property
    def cost(self) -> dict[str, Any]:
        """Thoughts, forwards, tokens and seconds per document, and memory; None if not known.

        `seconds_per_document` excludes loading. `wall_seconds`, which lm-eval records for every
        model, is the total time of all runs and includes loading.
        """
        reports = [c for run in self.runs if isinstance(c := run.settings.get("cost"), Mapping)]
        num = sum(t.num_documents or 0 for tasks in self.tasks.values() for t in tasks)
        known = len(reports) == len(self.runs) and num > 0

        def per_document(get: Any) -> float | None:
            try:
                return sum(get(report) for report in reports) / num if known else None
            except (AttributeError, KeyError, TypeError):  # recorded by another release
                return None

        forwards = [c for report in reports if isinstance(c := report.get("forwards"), Mapping)]
        roles = dict.fromkeys(role for counts in forwards for role in counts)
        by_role = {
            role: per_document(lambda r, role=role: r["forwards"].get(role, 0)) for role in roles
        }
        walls = [run.seconds for run in self.runs]
        return {
            "thoughts_per_document": per_document(lambda r: r["thought_steps"]),
            "forwards_per_document": None if None in by_role.values() else by_role or None,
            "tokens_read_per_document": per_document(lambda r: r["tokens_encoded"]),
            "tokens_written_per_document": per_document(lambda r: r["tokens_generated"]),
            "seconds_per_document": per_document(
                lambda r: sum(r["seconds"][phase] for phase in _PHASES)
            ),
            "wall_seconds": None if None in walls else sum(w for w in walls if w is not None),
            "peak_memory_bytes": max(map(_peak, reports)) or None if known else None,
        }

    @property
    def command(self) -> str:
        """The command lines that repeat the row, one for each of its runs."""
        return "\n".join(dict.fromkeys(command(run) for run in self.runs))


def entries_of(paths: Iterable[str | Path], read: Results, notes: list[str]) -> list[Entry]:
    """The rows of the runs in `paths`: named rows first, then the others in the order read.

    Args:
        paths: files and folders; NAME=PATH names a row.
        read: the runs, and the files that are left out, are added to it.
        notes: remarks on repeated runs, and on rows of different settings, are added to it.
    """
    named: dict[str, list[Run]] = {}
    unnamed: list[Run] = []
    for path in paths:
        name, place = path_of(path)
        results = read_results([place])
        read.runs += results.runs
        read.problems += results.problems
        kept = unnamed if name is None else named.setdefault(name, [])
        known = {run.file.resolve() for run in kept}
        kept += [run for run in results.runs if run.file.resolve() not in known]
    read.problems += [Problem(r.file, "no task with a score") for r in read.runs if not r.tasks]
    entries = [Entry(name=name, runs=runs) for name, runs in named.items() if runs]
    for entry in entries:
        if names := _differing(entry):
            notes.append(f"{entry.name} joins runs that differ in {', '.join(names)}")
    taken = {run.file.resolve() for entry in entries for run in entry.runs}
    rest = [run for run in unnamed if run.file.resolve() not in taken]
    entries += [Entry(name="", runs=runs) for runs in _same_but_seeds(rest, notes)]
    _name(entries)
    return [entry for entry in entries if entry.tasks]


def _differing(entry: Entry) -> list[str]:
    """The settings in which a row's runs differ, by their names in tables."""
    traits = [{**run.settings, "model": run.model} for run in entry.runs]
    return [
        shown
        for name, shown in {"model": "model class", **SETTINGS}.items()
        if len({str(values.get(name)) for values in traits}) > 1
    ]


def path_of(argument: str | Path) -> tuple[str | None, str]:
    """The row's name in NAME=PATH, or None, and the path; an existing path has no name."""
    name, equals, place = str(argument).partition("=")
    is_path = not equals or Path(argument).exists()
    return (None, str(argument)) if is_path else (plain(name), place)


def command(run: Run) -> str:
    """The command line that repeats a run, from what its results file records."""
    ours = all((tasks_path() / f"{task}.yaml").is_file() for task in run.tasks)
    words = ["latentref", "run"] if ours or run.model == "latentref" else ["lm_eval", "run"]
    args = without_secrets({k: v for k, v in run.model_args.items() if v is not None})
    words += ["--model", run.model]
    if args:
        words += ["--model_args", ",".join(f"{name}={value}" for name, value in args.items())]
    words += ["--tasks", ",".join(run.tasks)]
    shots = {task.num_fewshot for task in run.tasks.values()}
    if len(shots) == 1 and (num := shots.pop()) is not None:
        words += ["--num_fewshot", str(num)]
    if run.limit is not None:
        words += ["--limit", f"{run.limit:g}"]
    options = {name: run.config.get(name) for name in ("batch_size", "gen_kwargs")}
    for option, value in {**options, "device": run.device}.items():
        if value:
            words += [f"--{option}", json.dumps(value) if isinstance(value, dict) else str(value)]
    seeds = [run.config.get(name) for name in _SEEDS]
    if all(isinstance(seed, int) for seed in seeds) and seeds != [0, 1234, 1234, 1234]:
        words += ["--seed", ",".join(map(str, seeds))]
    words += _prompting_words(run.prompting)
    return shlex.join(plain(word) for word in [*words, "--log_samples", "--output_path", "OUT"])


def _prompting_words(prompting: Mapping[str, Any]) -> list[str]:
    words = ["--apply_chat_template"] if prompting["chat_template"] else []
    if instruction := prompting["system_instruction"]:
        words += ["--system_instruction", str(instruction)]
    multiturn = prompting["fewshot_as_multiturn"]
    # lm-eval's default depends on its release; it only matters with a chat template.
    known = prompting["chat_template"] and isinstance(multiturn, bool)
    return [*words, "--fewshot_as_multiturn", str(multiturn)] if known else words


def _same_but_seeds(runs: Iterable[Run], notes: list[str]) -> list[list[Run]]:
    """Groups of runs that differ only in seeds; a run that occurs twice is kept once."""
    kept: dict[str, list[Run]] = {}
    for run in runs:
        same = kept.setdefault(_identity(run, seeds=False), [])
        twins = [r for r in same if _identity(r, seeds=True) == _identity(run, seeds=True)]
        if any(_scores(r) == _scores(run) for r in twins):
            notes.append(f"{plain(run.file)} repeats {plain(twins[0].file)}: left out")
        elif twins:  # the same settings but other scores: other weights, or chance
            kept[f"{run.file}"] = [run]
        else:
            same.append(run)
    return [same for same in kept.values() if same]


def _identity(run: Run, *, seeds: bool) -> str:
    work = {
        name: (task.version, task.num_fewshot, task.num_documents)
        for name, task in run.tasks.items()
    }
    settings = {k: v for k, v in run.settings.items() if k not in ("cost", "data")}
    chosen = [run.config.get(name) for name in _SEEDS] if seeds else None
    args = [run.model, run.name, run.model_args, run.device, run.dtype, settings]
    other = [run.prompting, run.config.get("gen_kwargs"), run.config.get("model_sha")]
    return json.dumps([*args, *other, work, chosen], sort_keys=True, default=str)


def _scores(run: Run) -> dict[str, Any]:
    return {name: task.scores for name, task in run.tasks.items()}


def _name(entries: list[Entry]) -> None:
    """Names unnamed entries after their models, and adds the differences to equal names."""
    given = {entry.name for entry in entries if entry.name}
    unnamed = [entry for entry in entries if not entry.name]
    for entry in unnamed:
        run = entry.runs[0]
        seeds = f" ({len(entry.runs)} seeds)" if len(entry.runs) > 1 else ""
        entry.name = short_name(run.name) + seeds
    for traits in (_setting_traits, _folder_trait, _date_trait, _place_trait):
        for group in _namesakes(unnamed, given):
            parts = traits(group)
            for entry, part in zip(group, parts, strict=True):
                entry.name = f"{entry.name} {part}".strip()


def _namesakes(entries: list[Entry], given: Collection[str]) -> list[list[Entry]]:
    """Entries that share their name with each other, or with a row that a user named."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.name, []).append(entry)
    return [group for name, group in groups.items() if len(group) > 1 or name in given]


def _setting_traits(entries: list[Entry]) -> list[str]:
    """For each entry: the model class, settings and arguments in which the entries differ."""
    every = []
    for entry in entries:
        settings = {SETTINGS.get(name, name): v for name, v in entry.settings.items()}
        args = without_secrets(entry.runs[0].model_args)
        known = {k: v for k, v in args.items() if k not in (*entry.settings, "pretrained")}
        every.append({"": entry.runs[0].model, **known, **settings})
    names = dict.fromkeys(name for traits in every for name in traits)
    differing = [n for n in names if len({str(traits.get(n)) for traits in every}) > 1]
    return [
        " ".join(plain(f"{n}={t[n]}" if n else t[n]) for n in differing if n in t) for t in every
    ]


def _folder_trait(entries: list[Entry]) -> list[str]:
    return [f"({plain(entry.runs[0].file.parent.parent.name)})" for entry in entries]


def _date_trait(entries: list[Entry]) -> list[str]:
    return [str(_day(entry.runs[0].date) or "") for entry in entries]


def _place_trait(entries: list[Entry]) -> list[str]:
    return [f"#{number}" for number in range(1, len(entries) + 1)]


def _day(seconds: float | None) -> str | None:
    try:
        moment = datetime.datetime.fromtimestamp(seconds or 0, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return None
    return moment.strftime("%Y-%m-%d %H:%M") if seconds else None


def _joined(texts: Iterable[str | None]) -> str | None:
    return ", ".join(dict.fromkeys(text for text in texts if text)) or None


def _data_hashes(run: Run) -> dict[str, str]:
    """The hash of each split that this package recorded, else lm-eval's hash of each task."""
    data = run.settings.get("data")
    if not isinstance(data, Mapping):
        return {plain(task): plain(value)[:12] for task, value in run.task_hashes.items() if value}
    return {
        plain(split): plain(
            identity.get("sha256") or f"{identity.get('origin')}, seed {identity.get('seed')}"
        )
        for split, identity in data.items()
        if isinstance(identity, Mapping)
    }


def _peak(report: Mapping[str, Any]) -> int:
    """Peak memory in bytes: tensors on the GPUs if there are GPUs, else the whole process."""
    recorded = report.get("peak_memory_bytes")
    peaks = dict(recorded) if isinstance(recorded, Mapping) else {}
    host = peaks.pop("host", 0)
    return int(sum(v for v in peaks.values() if isinstance(v, int)) or host)
