"""A finished study as a page for people (README.md) and as results.json.

    save(study, "results/hops-small", command="latentref study ...")

Every figure on the page is computed here from the study. Deliberately runs nothing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_latentref.errors import saving
from lm_eval_latentref.evaluation.compare import Comparison
from lm_eval_latentref.evaluation.pages import (
    nats,
    origin,
    percent,
    points,
    see_also,
    table_head,
    table_row,
)
from lm_eval_latentref.evaluation.runs import Run
from lm_eval_latentref.evaluation.statistics import (
    Interval,
    detectable_difference,
    paired_interval,
    standard_error,
)
from lm_eval_latentref.evaluation.study import COCONUT, Row, Study, TrainedSet
from lm_eval_latentref.evaluation.sweep_report import margin_meaning
from lm_eval_latentref.training.data import leaves_questions_out
from lm_eval_latentref.training.log import TrainingLog

_FIVE, _TWO = (1 / 5, "1 in 5: the choices"), (1 / 2, "1 in 2: the answers on offer")
CHANCE = {
    "latentref_hops": (1 / 11, "1 in 11: any of the 12 letters but the start"),
    "latentref_mathqa": _FIVE,
    "latentref_mathqa_harness": _FIVE,
    "latentref_aqua": _FIVE,
    "latentref_strategyqa": _TWO,
    "latentref_prosqa": _TWO,
}
"""Accuracy of a guess among the answers that are possible, where that is known."""

FORMAT = "latentref study 3"
_HEAT_MAP = "sweep-{}.png"
_TABLE = (
    *("row", "accuracy %", "against Coconut, points", "p", "tokens", "ms", "peak memory GB"),
    "settings",
)
_CHOICES = (
    *("row", "accuracy %", "against Coconut, points", "p", "margin", "difference"),
    *("tied %", "commonest %"),
)


def save(study: Study, folder: str | os.PathLike[str], *, command: str) -> None:
    """Writes README.md and results.json into `folder`, and each sweep's heat map if it is drawn."""
    path = Path(folder)
    content = json.dumps(as_json(study, command=command), indent=1)
    with saving(path):
        path.mkdir(parents=True, exist_ok=True)
        (path / "results.json").write_text(content + "\n", "utf-8")
        for number, one in enumerate(study.sets):
            if one.heat_map.is_file():
                shutil.copyfile(one.heat_map, path / _HEAT_MAP.format(number))
        page = as_markdown(study, command=command) + see_also(path)
        (path / "README.md").write_text(page, "utf-8")


def as_json(study: Study, *, command: str) -> dict[str, Any]:
    """All numbers, without the single problems."""
    return {
        "format": FORMAT,
        "command": command,
        "made_with": made_with(study),
        "task": study.task,
        "dev_task": study.dev_task,
        "problems": len(_coconut(study.sets[0]).values),
        "bootstrap_seed": study.seed,
        "majority_answer": _coconut(study.sets[0]).majority,
        "chance": _chance(study)[0],
        "sets": [_set_json(number, one) for number, one in enumerate(study.sets)],
        "mean_over_sets": {name: _mean_json(study, name) for name in _names(study)},
    }


def as_markdown(study: Study, *, command: str) -> str:
    """The page: what was measured, the mean over seeds, each seed, settings, commands."""
    parts = [
        *_heading(study, command),
        *_means(study),
        *(line for one in study.sets for line in _of_set(one)),
        *_sweeps(study),
        *_training(study),
        *_commands(study),
        *origin(made_with(study)),
    ]
    return "\n".join(parts) + "\n"


def mean_difference(study: Study, name: str) -> Interval:
    """Of row `name` against Coconut over all sets that have it: problems are what is resampled."""
    sets = [one for one in study.sets if name in one.rows]
    rows_N = np.mean([one.rows[name].run.values for one in sets], axis=0)
    coconut_N = np.mean([_coconut(one).values for one in sets], axis=0)
    return paired_interval(rows_N, coconut_N, seed=study.seed)


def made_with(study: Study) -> list[dict[str, Any]]:
    """Versions and machines that the rows were run with, each once."""
    found: list[dict[str, Any]] = []
    for run in (row.run for one in study.sets for row in one.rows.values()):
        if run.made_with not in found:
            found.append(dict(run.made_with))
    return found


def _heading(study: Study, command: str) -> list[str]:
    run = _coconut(study.sets[0])
    chance, meaning = _chance(study)
    lines = [
        f"# {study.task}: {len(study.sets)} trained set{'s' * (len(study.sets) > 1)}",
        "",
        f"Written by `{command}`; every figure is also in results.json.",
        "",
        f"- Model: {_model(study.sets[0])}.",
        f"- Test: {len(run.values)} problems of `{study.task}` (its test split), {run.metric}. "
        f"Settings: chosen on {study.sets[0].sweep['problems']} problems of `{study.dev_task}` "
        "(its validation split), by mean margin.",
        *_trained_on(study.sets[0]),
        f"- Always giving the most frequent answer: {percent(run.majority)} %.",
    ]
    if chance is not None:
        lines.append(f"- Chance: {percent(chance)} % ({meaning}).")
    lines += [
        "- +- is one standard error over the problems. Differences are paired, on the same "
        f"problems: 95 % bootstrap interval (seed {study.seed}), p of the exact McNemar test.",
        "- An interval without width: no problem was judged differently.",
        f"- {_power(study.sets[0])}",
        "- tokens: generated per problem, without end of sequence and thoughts; ms: per problem, "
        f"models loaded, batches of {study.batch_size}; peak memory: of tensors on the GPU, or of "
        "the process where there is none, which may keep some of what the row before it took. eta "
        "is in units of d/2.",
        "",
    ]
    return lines


def _means(study: Study) -> list[str]:
    if len(study.sets) < 2:
        return []
    lines = ["## Mean over the training seeds", ""]
    lines += table_head(
        ("row", "accuracy %", "each seed", "against Coconut, points", "margin, each seed, nats")
    )
    for name in _names(study):
        sets = [one.rows[name].run for one in study.sets if name in one.rows]
        each = ", ".join(percent(run.accuracy) for run in sets)
        error = standard_error(np.mean([run.values for run in sets], axis=0))
        mean = float(np.mean([run.accuracy for run in sets]))
        against = "" if name == COCONUT else points(mean_difference(study, name))
        margins = "; ".join(
            filter(None, (_margin(s.rows[name]) for s in study.sets if name in s.rows))
        )
        accuracy = f"{percent(mean)} +- {percent(error)}"
        lines.append(table_row((name, accuracy, each, against, margins)))
    return [*lines, ""]


def _of_set(one: TrainedSet) -> list[str]:
    lines = [f"## {_name(one)}", "", *table_head(_TABLE)]
    for name, row in one.rows.items():
        cells = (
            name,
            *_judged(row.run, row.against_coconut),
            f"{row.run.tokens_per_document:.2f}",
            f"{1000 * row.run.seconds_per_document:.2f}",
            f"{row.run.peak_memory / 1e9:.2f}",
            row.setting or "",
        )
        lines.append(table_row(cells))
    return [*lines, "", *_by_likelihood(one)]


def _by_likelihood(one: TrainedSet) -> list[str]:
    scored = {name: run for name, row in one.rows.items() if (run := row.choosing)}
    if not scored:
        return []
    lines = [
        "The same problems by log-likelihood: the answer is the likeliest candidate, the first of "
        "equals; margin: that of the gold one above the best other, in nats; tied: problems whose "
        "likeliest candidates are equal; commonest: those with the place that is chosen most.",
        "",
        *table_head(_CHOICES),
    ]
    for name, run in scored.items():
        row = one.rows[name]
        margin = f"{np.mean(run.margins):+.3f}"
        shares = [percent(share or 0.0) for share in (run.tied, run.commonest_choice)]
        cells = (name, *_judged(run, row.choosing_against), margin, _margin(row), *shares)
        lines.append(table_row(cells))
    return [*lines, ""]


def _judged(run: Run, against: Comparison | None) -> tuple[str, str, str]:
    """Accuracy, its difference from Coconut's, and p."""
    accuracy = f"{percent(run.accuracy)} +- {percent(run.accuracy_error)}"
    difference = points(against.difference) if against else ""
    test = against.test if against else None
    return accuracy, difference, f"{test.p_value:.3g}" if test else ""


def _trained_on(one: TrainedSet) -> list[str]:
    if not one.trained_on:
        return []
    text = f"- Trained on: {', '.join(one.trained_on)}."
    train = one.recipe.get("train") or []
    names = [train] if isinstance(train, str) else train
    if names and len(one.trained_on) > len(names):
        text += (
            f" In part before, as {one.recipe.get('pretrained')}: what else is told here of the "
        )
        text += "training is of the last one alone."
    elif names and leaves_questions_out(names, bool(one.recipe.get("check_overlap"))):
        text += " Questions of any benchmark's dev or test split were left out."
    return [text]


def _sweeps(study: Study) -> list[str]:
    lines = [f"## Settings tried on `{study.dev_task}`", ""]
    is_free = study.sets[0].sweep["free_answers"]
    lines += [f"Margin: {margin_meaning(is_free)}, in nats.", ""]
    for number, one in enumerate(study.sets):
        lines += [f"{_name(one)}; recommended: {one.sweep['recommended']}", ""]
        if one.heat_map.is_file():
            lines += [f"![margins over the grid]({_HEAT_MAP.format(number)})", ""]
        lines += table_head(("setting", "accuracy %", "margin", "margin against plain"))
        best = {label: row for row, label in one.sweep["best"].items()}
        for setting in one.sweep["settings"]:
            label = setting["label"]
            mark = f" (best of {best[label]})" if label in best else ""
            interval = Interval(**setting["margin_against_plain"])
            error = f"{setting['margin']:+.3f} +- {setting['margin_stderr']:.3f}"
            lines.append(
                f"| {label}{mark} | {percent(setting['accuracy'])} | {error} | {nats(interval)} |"
            )
        lines.append("")
    return lines


def _training(study: Study) -> list[str]:
    """Minutes, references, losses and data of the sets whose folder tells them."""
    told = {
        _name(one) if folder == one.folder else folder: log
        for one in study.sets
        for folder, log in one.trainings.items()
    }
    if not told:
        return []
    phases = list(dict.fromkeys(phase for log in told.values() for phase in log.seconds))
    lines = [
        "## Training",
        "",
        "Minutes of steps and validation, saving left out, on the machine that trained. Weak and "
        "strong: the epoch of CoT and its accuracy on the validation problems of training.",
        "",
        *table_head(("set", *phases, "all phases", "weak", "strong")),
    ]
    for name, log in told.items():
        seconds = [log.seconds.get(phase) for phase in phases]
        minutes = ["" if value is None else f"{value / 60:.1f}" for value in seconds]
        total = f"{sum(log.seconds.values()) / 60:.1f}"
        references = [_reference(log, role) for role in ("weak", "strong")]
        lines.append(table_row((name, *minutes, total, *references)))
    lines.append("")
    for name, log in told.items():
        lines += [_losses(name, log), ""]
        lines += [_data(name, log), ""] if log.data else []
    return lines


def _losses(name: str, log: TrainingLog) -> str:
    told = [
        f"{stage} {', '.join(f'{x:.3f}' for x in losses)}" for stage, losses in log.losses.items()
    ]
    return (
        f"Loss of {name}, nats a labelled token, mean over each epoch while it was trained: "
        f"{'; '.join(told)}."
    )


def _data(name: str, log: TrainingLog) -> str:
    counts = [
        f"{source} {found['problems']} ({found['removed']} more removed)"
        for source, found in log.data.items()
    ]
    return (
        f"Training problems of {name}: {', '.join(counts)}. Removed: their question stands "
        "in a dev, test or validation split."
    )


def _reference(log: TrainingLog, role: str) -> str:
    epoch = log.references.get(role)
    if epoch is None:
        return ""
    return f"epoch {epoch.number}, {percent(epoch.accuracy)} % of {epoch.num_problems}"


def _commands(study: Study) -> list[str]:
    lines = ["## Commands", "", "```bash"]
    for one in study.sets:
        if one.recipe:
            lines.append(f"# {_name(one)}: recipe.yaml of the folder has all values")
        lines += one.train_commands
        lines += [row.run.command for row in one.rows.values()]
        lines += [row.scored.command for row in one.rows.values() if row.scored]
    return [*lines, "```", ""]


def _power(one: TrainedSet) -> str:
    """How small a difference so many problems can show, at best and as the rows differ here."""
    num = len(_coconut(one).values)
    at_best = detectable_difference(num, discordant_share=0.0)
    text = (
        "At 5 % significance and 80 % power so many problems show a difference of "
        f"{percent(at_best)} points if none of them changes the other way"
    )
    changed = max((_share_changed(row) for row in one.rows.values() if row.setting), default=0.0)
    if changed <= at_best:
        return f"{text}; refinement changes fewer here, {percent(changed)} % at most."
    return (
        f"{text}, and of {percent(detectable_difference(num, discordant_share=changed))} points if "
        f"as many change as by refinement here, {percent(changed)} % at most."
    )


def _share_changed(row: Row) -> float:
    """Of the problems: those judged otherwise than by Coconut."""
    test = row.against_coconut and row.against_coconut.test
    return (test.only_first + test.only_second) / len(row.run.values) if test else 0.0


def _set_json(number: int, one: TrainedSet) -> dict[str, Any]:
    return {
        "folder": one.folder,
        "recipe": dict(one.recipe),
        "trained_on": list(one.trained_on),
        "heat_map": _HEAT_MAP.format(number) if one.heat_map.is_file() else None,
        "rows": {name: _row_json(row) for name, row in one.rows.items()},
        "sweep": dict(one.sweep),
        "weights_file": one.weights_file,
        "train_commands": list(one.train_commands),
        "trainings": {name: _training_json(log) for name, log in one.trainings.items()},
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


def _row_json(row: Row) -> dict[str, Any]:
    run, scored, against = row.run, row.choosing, row.choosing_against
    return {
        "command": run.command,
        "setting": row.setting,
        "model_args": dict(row.model_args),
        "accuracy": run.accuracy,
        "accuracy_stderr": run.accuracy_error,
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


def _mean_json(study: Study, name: str) -> dict[str, Any]:
    runs = [one.rows[name].run for one in study.sets if name in one.rows]
    difference = mean_difference(study, name)
    return {
        "sets": len(runs),
        "accuracy": float(np.mean([run.accuracy for run in runs])),
        "accuracy_stderr": standard_error(np.mean([run.values for run in runs], axis=0)),
        "against_coconut": dataclasses.asdict(difference),
    }


def _names(study: Study) -> list[str]:
    return list(dict.fromkeys(name for one in study.sets for name in one.rows))


def _coconut(one: TrainedSet) -> Any:
    return one.rows[COCONUT].run


def _name(one: TrainedSet) -> str:
    seed = one.recipe.get("seed")
    return one.folder if seed is None else f"{one.folder}, training seed {seed}"


def _model(one: TrainedSet) -> str:
    config: Mapping[str, Any] = one.recipe.get("config") or {}
    if not config:
        name = str(one.recipe.get("pretrained", one.folder))
        return name if one.weights_file is None else f"{name}, the weights of {one.weights_file}"
    return (
        f"{config['model_type']} from scratch, {config.get('num_hidden_layers')} layers, width "
        f"{config.get('hidden_size')}"
    )


def _chance(study: Study) -> tuple[float | None, str]:
    # A companion with candidates has the chance of its task.
    return CHANCE.get(study.task.removesuffix("_mc"), (None, ""))


def _margin(row: Row) -> str:
    against = row.choosing_against
    if against is None or against.margin_difference is None:
        return ""
    return nats(against.margin_difference)
