"""Turns a study into JSON values, and these into a page.

content = study_json(study, command="latentref study ...")
study_page(content)         # a results.json that is read back gives the same page
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_latentref.errors import saving
from lm_eval_latentref.evaluation.overview import overview_json, overview_page, place
from lm_eval_latentref.evaluation.report import (
    HEAT_MAP,
    STUDY,
    Content,
    margin_gain,
    nats,
    origin,
    page,
    percent,
    plus_minus,
    points,
    save,
    setting_of,
    table,
    with_unit,
)
from lm_eval_latentref.evaluation.runs import StudyRun
from lm_eval_latentref.evaluation.statistics import (
    Interval,
    detectable_difference,
    paired_interval,
    standard_error,
)
from lm_eval_latentref.evaluation.study import COCONUT, Study, StudyRow, TrainedSet
from lm_eval_latentref.evaluation.sweep import Sweep, sweep_json
from lm_eval_latentref.evaluation.wording import markdown
from lm_eval_latentref.training.data import leaves_questions_out
from lm_eval_latentref.training.log import TrainingLog

_FIVE, _TWO = (1 / 5, "1 in 5: the choices"), (1 / 2, "1 in 2: the answers on offer")
CHANCE = {
    "latentref_graph": (0.5, "1 in 2: one of the two candidates"),
    "latentref_mathqa": _FIVE,
    "latentref_mathqa_harness": _FIVE,
    "latentref_aqua": _FIVE,
    "latentref_strategyqa": _TWO,
    "latentref_prosqa": _TWO,
}
"""The accuracy of guessing among the possible answers, and its meaning, if it is known."""


def study_json(study: Study, *, command: str) -> dict[str, Any]:
    """All numbers of the study, without those of single problems."""
    run = study.sets[0].rows[COCONUT].run
    return {
        "format": STUDY,
        "command": command,
        "made_with": made_with(study),
        "task": study.task,
        "dev_task": study.dev_task,
        "metric": run.metric,
        "problems": len(run.values),
        "batch_size": study.batch_size,
        "bootstrap_seed": study.seed,
        "majority_answer": run.majority,
        # Guessing does as well on the companion with candidates.
        "chance": CHANCE.get(study.task.removesuffix("_mc"), (None, ""))[0],
        "sets": [_set_json(number, trained) for number, trained in enumerate(study.sets)],
        "mean_over_sets": {name: _mean_json(study, name) for name in _names(study)},
    }


def made_with(study: Study) -> list[dict[str, Any]]:
    """The distinct versions and machines that the rows were run with."""
    origins: list[dict[str, Any]] = []
    for run in (row.run for trained in study.sets for row in trained.rows.values()):
        if run.made_with not in origins:
            origins.append(dict(run.made_with))
    return origins


def mean_difference(study: Study, name: str) -> Interval:
    """Row `name` minus Coconut, the mean over all sets that have it; problems are resampled."""
    sets = [trained for trained in study.sets if name in trained.rows]
    rows_N = np.mean([trained.rows[name].run.values for trained in sets], axis=0)
    coconut_N = np.mean([trained.rows[COCONUT].run.values for trained in sets], axis=0)
    return paired_interval(rows_N, coconut_N, seed=study.seed)


def _names(study: Study) -> Iterable[str]:
    return dict.fromkeys(name for trained in study.sets for name in trained.rows)


def _mean_json(study: Study, name: str) -> dict[str, Any]:
    runs = [trained.rows[name].run for trained in study.sets if name in trained.rows]
    return {
        "sets": len(runs),
        "accuracy": float(np.mean([run.accuracy for run in runs])),
        "accuracy_stderr": standard_error(np.mean([run.values for run in runs], axis=0)),
        "against_coconut": dataclasses.asdict(mean_difference(study, name)),
    }


def _set_json(number: int, trained: TrainedSet) -> dict[str, Any]:
    return {
        "folder": trained.folder,
        "recipe": dict(trained.recipe),
        "trained_on": list(trained.trained_on),
        "heat_map": HEAT_MAP.format(number) if trained.heat_map.is_file() else None,
        "rows": {
            name: _row_json(row, trained.rows[COCONUT].run) for name, row in trained.rows.items()
        },
        "sweep": _sweep_json(trained.sweep),
        "contrast_sweeps": {
            name: _sweep_json(result) for name, result in trained.contrast_sweeps.items()
        },
        "weights_file": trained.weights_file,
        "train_commands": list(trained.train_commands),
        "trainings": {name: _training_json(log) for name, log in trained.trainings.items()},
    }


def _sweep_json(result: Sweep) -> dict[str, Any]:
    """The sweep's results, without those of single documents."""
    content = sweep_json(result, command="")
    for setting in content["settings"]:
        del setting["correct"], setting["margins"]
    names = ("best", "recommended", "rule", "best_of_all", "rivals", "smallest_effect", "cost")
    return {
        **{name: content[name] for name in names},
        "problems": len(result.task.documents),
        "free_answers": result.task.is_free,
        "settings": content["settings"],
    }


def _training_json(log: TrainingLog) -> dict[str, Any]:
    references = {
        role: {"epoch": epoch.number, "accuracy": epoch.accuracy, "problems": epoch.num_problems}
        for role, epoch in log.references.items()
    }
    return {
        "seconds": dict(log.seconds),
        "losses": {name: list(losses) for name, losses in log.losses.items()},
        "references": references,
        "data": {name: dict(counts) for name, counts in log.data.items()},
    }


def _row_json(row: StudyRow, coconut: StudyRun) -> dict[str, Any]:
    run, scored, against = row.run, row.choosing, row.choosing_against
    return {
        "command": run.command,
        "setting": row.setting,
        "model_args": dict(row.model_args),
        "accuracy": run.accuracy,
        "accuracy_stderr": run.accuracy_error,
        "by_steps": _by_steps(run, coconut),
        "tokens_per_problem": run.tokens_per_document,
        "seconds_per_problem": run.seconds_per_document,
        "peak_memory_bytes": run.peak_memory,
        "cost": dict(run.cost),
        "checkpoints": list(run.checkpoints),
        "against_coconut": row.against_coconut and dataclasses.asdict(row.against_coconut),
        "margin_command": scored and scored.command,
        "choice_accuracy": scored and scored.accuracy,
        "choice_accuracy_stderr": scored and scored.accuracy_error,
        "choices_tied": scored and scored.tied,
        "commonest_choice": scored and scored.commonest_choice,
        "margin_mean": float(np.mean(scored.margins)) if scored else None,
        "margin_against_coconut": against and dataclasses.asdict(against),
    }


def _by_steps(run: StudyRun, coconut: StudyRun) -> dict[str, Content]:
    """Results by the number of gold steps; empty where the documents have no steps."""
    values_N, coconut_N = np.array(run.values), np.array(coconut.values)
    by_steps: dict[str, Content] = {}
    for num in sorted({num for num in run.num_steps if num is not None}):
        place_N = np.array([steps == num for steps in run.num_steps])
        by_steps[str(num)] = {
            "problems": int(place_N.sum()),
            "accuracy": float(values_N[place_N].mean()),
            "against_coconut": float((values_N - coconut_N)[place_N].mean()),
        }
    return by_steps


def save_study(study: Study, folder: str | os.PathLike[str], *, command: str) -> str:
    """Writes the page, results.json and the heat maps of sweeps; returns the page."""
    return _save(study, Path(folder), study_json(study, command=command))


def save_studies(studies: Sequence[Study], folder: str | os.PathLike[str], *, command: str) -> str:
    """Writes each study into its own subfolder, and a page of all into `folder`; returns that."""
    root = Path(folder)
    pages = {study.task: place(study.task) for study in studies}
    contents = {study.task: study_json(study, command=command) for study in studies}
    for study in studies:
        _save(study, (root / pages[study.task]).parent, contents[study.task])
    content = overview_json(contents, pages, command=command)
    return save(content, root, overview_page(contents, pages, command=command))


def _save(study: Study, path: Path, content: dict[str, Any]) -> str:
    with saving(path):
        path.mkdir(parents=True, exist_ok=True)
        for number, trained in enumerate(study.sets):
            if trained.heat_map.is_file():
                shutil.copyfile(trained.heat_map, path / HEAT_MAP.format(number))
    return save(content, path, study_page(content))


# The page ----------------------------------------------------------------------------------------

_COMPARED = ("row", "accuracy %", "against Coconut, points", "p")
_TABLE = (*_COMPARED, "tokens", "ms", "peak memory GB", "settings")
_CHOICES = (*_COMPARED, "margin", "difference", "tied %", "commonest %")


def study_page(content: Content) -> str:
    """The page: what was measured, the mean over seeds, each seed, settings, commands."""
    chance = CHANCE.get(content["task"].removesuffix("_mc"), (None, ""))
    trainings = {
        set_name(trained) if folder == trained["folder"] else folder: log
        for trained in content["sets"]
        for folder, log in trained["trainings"].items()
    }
    return page(
        "study.md.j2",
        content=content,
        chance_meaning=chance[1],
        model=_model(content["sets"][0]),
        trained_on=_trained_on(content["sets"][0]),
        power=_power(content),
        means=table(_MEANS, [_mean_row(content, name) for name in content["mean_over_sets"]]),
        sets=[
            {
                "name": set_name(trained),
                "table": table(_TABLE, [_row(name, row) for name, row in trained["rows"].items()]),
                "choices": _choices(trained),
                "by_steps": _steps_table(trained["rows"]),
                "settings": _tried(trained["sweep"]),
                "contrasts": {
                    name: _tried(sweep)
                    for name, sweep in trained.get("contrast_sweeps", {}).items()
                },
                **trained,
            }
            for trained in content["sets"]
        ],
        trainings=trainings,
        training=_training(trainings),
        own_margins={
            row["margin_command"]
            for trained in content["sets"]
            for row in trained["rows"].values()
            if row["margin_command"] == row["command"]
        },
        origin=origin(content["made_with"]),
    )


def set_name(trained: Content) -> str:
    """The heading of a trained set: its folder and, if it is known, the training seed."""
    seed = trained["recipe"].get("seed")
    return str(trained["folder"]) if seed is None else f"{trained['folder']}, training seed {seed}"


_MEANS = ("row", "accuracy %", "each seed", "against Coconut, points", "margin, each seed, nats")


def _mean_row(content: Content, name: str) -> Sequence[str]:
    mean = content["mean_over_sets"][name]
    rows = [trained["rows"][name] for trained in content["sets"] if name in trained["rows"]]
    return (
        name,
        plus_minus(mean),
        ", ".join(percent(row["accuracy"]) for row in rows),
        "" if name == COCONUT else points(mean["against_coconut"]),
        "; ".join(filter(None, map(margin_gain, rows))),
    )


def _row(name: str, row: Content) -> Sequence[str]:
    memory = row["peak_memory_bytes"]
    return (
        name,
        plus_minus(row),
        *_against(row["against_coconut"]),
        f"{row['tokens_per_problem']:.2f}",
        f"{1000 * row['seconds_per_problem']:.2f}",
        "" if memory is None else f"{memory / 1e9:.2f}",
        with_unit(row["setting"] or ""),
    )


def _against(against: Content | None) -> tuple[str, str]:
    """The difference from Coconut, and its p-value if the metric is an accuracy."""
    if against is None:
        return "", ""
    p_value = f"{against['test']['p_value']:.3g}" if against["test"] else ""
    return points(against["difference"]), p_value


def _choices(trained: Content) -> str:
    scored = {
        name: row for name, row in trained["rows"].items() if row["choice_accuracy"] is not None
    }
    rows = [
        (
            name,
            plus_minus(row, "choice_accuracy"),
            *_against(row["margin_against_coconut"]),
            f"{row['margin_mean']:+.3f}",
            margin_gain(row),
            percent(row["choices_tied"] or 0.0),
            percent(row["commonest_choice"] or 0.0),
        )
        for name, row in scored.items()
    ]
    return table(_CHOICES, rows) if rows else ""


def _steps_table(rows: Mapping[str, Content]) -> str:
    """Accuracy and difference from Coconut, a column for each number of steps; empty for one."""
    columns = rows[COCONUT].get("by_steps", {})
    if len(columns) < 2:
        return ""
    head = ("row", *(f"{num} steps ({part['problems']})" for num, part in columns.items()))
    return table(
        head, [(name, *map(_part, row["by_steps"].values())) for name, row in rows.items()]
    )


def _part(part: Content) -> str:
    return f"{percent(part['accuracy'])} ({100 * part['against_coconut']:+.1f})"


def _tried(sweep: Content) -> str:
    best = {label: row for row, label in sweep["best"].items()}
    rows = []
    for tried in sweep["settings"]:
        mark = f" (best of {best[tried['label']]})" if tried["label"] in best else ""
        rows.append(
            (
                with_unit(tried["label"]) + mark,
                percent(tried["accuracy"]),
                f"{tried['margin']:+.3f} +- {tried['margin_stderr']:.3f}",
                nats(tried["margin_against_plain"]),
                setting_of(tried).model_args,
            )
        )
    head = ("setting", "accuracy %", "margin", "margin against plain", "--model_args")
    return table(head, rows)


def _training(trainings: Mapping[str, Content]) -> str:
    phases = list(dict.fromkeys(phase for log in trainings.values() for phase in log["seconds"]))
    rows = []
    for name, log in trainings.items():
        minutes = [log["seconds"].get(phase) for phase in phases]
        rows.append(
            (
                markdown(name),
                *("" if value is None else f"{value / 60:.1f}" for value in minutes),
                f"{sum(log['seconds'].values()) / 60:.1f}",
                *(_reference(log["references"].get(role)) for role in ("weak", "strong")),
            )
        )
    return table(("set", *map(markdown, phases), "all phases", "weak", "strong"), rows)


def _reference(epoch: Content | None) -> str:
    if epoch is None:
        return ""
    return f"epoch {epoch['epoch']}, {percent(epoch['accuracy'])} % of {epoch['problems']}"


def _model(trained: Content) -> str:
    recipe: Content = trained["recipe"]
    config: Content = recipe.get("config") or {}
    if not config:
        name = str(recipe.get("pretrained", trained["folder"]))
        weights = trained.get("weights_file")
        return name if weights is None else f"{name}, the weights of {weights}"
    return (
        f"{config['model_type']} from scratch, {config.get('num_hidden_layers')} layers, width "
        f"{config.get('hidden_size')}"
    )


def _trained_on(trained: Content) -> str:
    """A remark after the list of splits: on an earlier training, or on questions left out."""
    recipe, train = trained["recipe"], trained["recipe"].get("train") or []
    names = [train] if isinstance(train, str) else train
    if names and len(trained["trained_on"]) > len(names):
        return (
            f" On some of them in an earlier training, that of {recipe.get('pretrained')}; "
            "everything else here about training refers to the last one."
        )
    if names and leaves_questions_out(names, bool(recipe.get("check_overlap"))):
        return " Questions of any benchmark's dev or test split were left out."
    return ""


def _power(content: Content) -> str:
    """The smallest difference that so many problems can show, at best and for rows as these."""
    num, first = content["problems"], content["sets"][0]
    at_best = detectable_difference(num, discordant_share=0.0)
    text = (
        "At 5 % significance and 80 % power, so many problems can show a difference of "
        f"{percent(at_best)} points if none of them changes the other way"
    )
    tests = [
        row["against_coconut"]["test"]
        for row in first["rows"].values()
        if row["setting"] and row["against_coconut"]
    ]
    shares = [(test["only_first"] + test["only_second"]) / num for test in tests if test]
    changed = max(shares, default=0.0)
    if changed <= at_best:
        return f"{text}; refinement changes fewer here, {percent(changed)} % at most."
    at_share = percent(detectable_difference(num, discordant_share=changed))
    return (
        f"{text}, and of {at_share} points if as many change as by refinement here, "
        f"{percent(changed)} % at most."
    )
