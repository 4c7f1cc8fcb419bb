"""Pages of sweeps and studies, made of their JSON.

    content = study_json(study, command="latentref study ...")
    save(content, "results/mine", study_page(content))      # results.json and README.md

A page holds only what its JSON holds, so the JSON read back gives the same one. The prose is in
`templates`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_latentref.errors import LatentRefError, saving
from lm_eval_latentref.evaluation.settings import ROWS, Setting
from lm_eval_latentref.evaluation.statistics import detectable_difference
from lm_eval_latentref.evaluation.templates import render
from lm_eval_latentref.evaluation.wording import table as aligned
from lm_eval_latentref.training.data import leaves_questions_out

SWEEP, STUDY, OVERVIEW, THOUGHTS = (
    *("latentref sweep 2", "latentref study 3", "latentref overview 1"),
    "latentref thoughts 1",
)
"""The format that each kind of JSON names."""
RESULTS, PAGE, SWEEP_RESULTS = "results.json", "README.md", "sweep.json"
HEAT_MAP = "sweep-{}.png"

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

Content = Mapping[str, Any]


# Words and numbers -------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, all columns aligned on the left."""
    return aligned(head, rows, numbers_from=len(head))


def percent(share: float) -> str:
    """A share such as an accuracy."""
    return f"{100 * share:.2f}"


def plus_minus(found: Content, name: str = "accuracy") -> str:
    """A share with its standard error, in percent."""
    error = found[f"{name}_stderr"]
    return f"{percent(found[name])} +- {percent(math.nan if error is None else error)}"


def points(interval: Content) -> str:
    """A difference of shares with its interval, in points."""
    mean, low, high = (100 * interval[name] for name in ("mean", "low", "high"))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def nats(interval: Content, digits: int = 3) -> str:
    """A difference of margins with its interval."""
    mean, low, high = (f"{interval[name]:+.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def with_unit(label: str) -> str:
    """A setting's label with the unit of eta, which those of older files left out."""
    return re.sub(r"eta=(?!0(?:\s|$))([^\s*]+)(?=\s|$)", r"eta=\1*d/2", label)


def setting_of(content: Content) -> Setting:
    """The setting of one row of a sweep's JSON."""
    return Setting(
        latent_steps=content["latent_steps"],
        memory_rate=content["memory_rate"],
        step_size=content["step_size_in_half_d"],
        search_steps=content["search_steps"],
    )


def margin_meaning(is_free: bool) -> str:
    """What a margin is, of a task whose answers are free or on offer."""
    if is_free:
        return (
            "log-likelihood of the gold answer with its end of sequence (answers are free; right "
            "is what greedy decoding writes so)"
        )
    return "log-likelihood of the gold answer minus the best other"


HELPERS: dict[str, Callable[..., Any]] = {
    **{"table": table, "percent": percent, "plus_minus": plus_minus, "points": points},
    **{"nats": nats, "with_unit": with_unit, "setting_of": setting_of},
    "margin_meaning": margin_meaning,
}


def page(template: str, **values: Any) -> str:
    """The text of a template, which may use all helpers above."""
    return render(template, **HELPERS, **values)


# Writing -----------------------------------------------------------------------------------------


def save(content: Content, folder: str | os.PathLike[str], text: str) -> str:
    """Writes results.json and README.md, which ends with links to what lies beside it."""
    path = Path(folder)
    with saving(path):
        path.mkdir(parents=True, exist_ok=True)
        (path / RESULTS).write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        text += see_also(path)
        (path / PAGE).write_text(text, "utf-8")
    return text


def check_kind(folder: str | os.PathLike[str], wanted: str) -> None:
    """Raises LatentRefError if results.json in `folder` is of another kind than format `wanted`.

    Its page would be lost otherwise.
    """
    path = Path(folder) / RESULTS
    try:
        found = json.loads(path.read_text("utf-8"))["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    kind, other = (name.rpartition(" ")[0] for name in (wanted, str(found)))
    if kind != other:
        raise LatentRefError(
            f"{path} is a {other!r}, which a {kind!r} would overwrite; give another folder"
        )


def see_also(folder: Path) -> str:
    """Links to what other commands wrote into the same folder."""
    pages = [*sorted(folder.glob("*.md")), *sorted(folder.glob(f"*/{PAGE}"))]
    names = [one.relative_to(folder).as_posix() for one in pages if one != folder / PAGE]
    links = "".join(f"- [{name}]({name})\n" for name in names)
    return f"\n## Beside this\n\n{links}" if names else ""


# A sweep -----------------------------------------------------------------------------------------

ROW_NAMES = {
    **{"plain": "plain", "residual": "residual only"},
    **{"search": "search only", "both": "both"},
}


def sweep_page(content: Content) -> str:
    """The table, the best of each row, the recommendation, what the split could show, the cost."""
    by_label = {one["label"]: one for one in content["settings"]}
    settings = sorted(
        content["settings"], key=lambda one: (ROWS.index(one["row"]), setting_of(one))
    )
    near = 1 + sum(one["within_noise"] for one in content["rivals"])
    rival = [one for one in content["rivals"] if one["setting"] == content["recommended"]]
    return page(
        "sweep.txt.j2",
        settings=table(_SETTINGS, [_setting_row(content, one) for one in settings]),
        best={ROW_NAMES[row]: by_label[label] for row, label in content["best"].items()},
        recommended=by_label[content["recommended"]],
        rival=rival[0] if rival else None,
        num_near=near,
        num_documents=len(content["task"]["documents"]),
        **{name: content[name] for name in ("task", "overflowed", "best_of_all", "rivals", "cost")},
        smallest=content["smallest_effect"],
        num_settings=len(content["settings"]) + len(content["overflowed"]),
    )


_SETTINGS = (
    *("row", "T", "alpha", "eta", "S", "accuracy %", "margin", "margin - plain", "p (acc)", ""),
    "--model_args",
)


def _setting_row(content: Content, one: Content) -> Sequence[str]:
    setting, is_plain = setting_of(one), one["label"] == content["best"]["plain"]
    marks = ["best"] * (one["label"] == content["best"][one["row"]])
    marks += ["recommended"] * (one["label"] == content["recommended"])
    margin_error = math.nan if one["margin_stderr"] is None else one["margin_stderr"]
    return (
        ROW_NAMES[one["row"]],
        *(str(setting.latent_steps), f"{setting.memory_rate:g}", setting.eta),
        *(str(setting.search_steps), plus_minus(one)),
        f"{one['margin']:+.4f} +- {margin_error:.4f}",
        "" if is_plain else nats(one["margin_against_plain"], 4),
        "" if is_plain else f"{one['mcnemar_against_plain']['p_value']:.3f}",
        *(", ".join(marks), setting.model_args),
    )


# A study -----------------------------------------------------------------------------------------

_TABLE = (
    *("row", "accuracy %", "against Coconut, points", "p", "tokens", "ms", "peak memory GB"),
    "settings",
)
_CHOICES = (
    *("row", "accuracy %", "against Coconut, points", "p", "margin", "difference"),
    *("tied %", "commonest %"),
)


def study_page(content: Content) -> str:
    """The page: what was measured, the mean over seeds, each seed, settings, commands."""
    chance = CHANCE.get(content["task"].removesuffix("_mc"), (None, ""))
    trainings = {
        set_name(one) if folder == one["folder"] else folder: log
        for one in content["sets"]
        for folder, log in one["trainings"].items()
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
                "name": set_name(one),
                "table": table(_TABLE, [_row(name, row) for name, row in one["rows"].items()]),
                "choices": _choices(one),
                "settings": _tried(one["sweep"]),
                **one,
            }
            for one in content["sets"]
        ],
        trainings=trainings,
        training=_training(trainings),
        own_margins={
            row["margin_command"]
            for one in content["sets"]
            for row in one["rows"].values()
            if row["margin_command"] == row["command"]
        },
        origin=origin(content["made_with"]),
    )


def set_name(one: Content) -> str:
    seed = one["recipe"].get("seed")
    return str(one["folder"]) if seed is None else f"{one['folder']}, training seed {seed}"


def origin(made: Iterable[Content]) -> str:
    """With which versions and on which machines it was made."""
    return page("made_with.md.j2", made=list(made)).rstrip("\n")


_MEANS = ("row", "accuracy %", "each seed", "against Coconut, points", "margin, each seed, nats")


def _mean_row(content: Content, name: str) -> Sequence[str]:
    mean = content["mean_over_sets"][name]
    rows = [one["rows"][name] for one in content["sets"] if name in one["rows"]]
    return (
        *(name, plus_minus(mean), ", ".join(percent(row["accuracy"]) for row in rows)),
        "" if name == "Coconut" else points(mean["against_coconut"]),
        "; ".join(filter(None, map(margin_gain, rows))),
    )


def _row(name: str, row: Content) -> Sequence[str]:
    memory = row["peak_memory_bytes"]
    return (
        *(name, plus_minus(row), *_against(row["against_coconut"])),
        f"{row['tokens_per_problem']:.2f}",
        f"{1000 * row['seconds_per_problem']:.2f}",
        "" if memory is None else f"{memory / 1e9:.2f}",
        with_unit(row["setting"] or ""),
    )


def _against(against: Content | None) -> tuple[str, str]:
    """The difference from Coconut's, and p."""
    if against is None:
        return "", ""
    return points(against["difference"]), _p_value(against)


def _p_value(against: Content) -> str:
    return f"{against['test']['p_value']:.3g}" if against["test"] else ""


def margin_gain(row: Content) -> str:
    """The difference of a row's mean margin from Coconut's, where candidates were compared."""
    against = row["margin_against_coconut"]
    return nats(against["margin_difference"]) if against and against["margin_difference"] else ""


def _choices(one: Content) -> str:
    scored = {name: row for name, row in one["rows"].items() if row["choice_accuracy"] is not None}
    if not scored:
        return ""
    return table(
        _CHOICES,
        [
            (
                *(name, plus_minus(row, "choice_accuracy")),
                *_against(row["margin_against_coconut"]),
                *(f"{row['margin_mean']:+.3f}", margin_gain(row)),
                *(percent(row[share] or 0.0) for share in ("choices_tied", "commonest_choice")),
            )
            for name, row in scored.items()
        ],
    )


def _tried(sweep: Content) -> str:
    best = {label: row for row, label in sweep["best"].items()}
    rows = []
    for one in sweep["settings"]:
        mark = f" (best of {best[one['label']]})" if one["label"] in best else ""
        rows.append(
            (
                with_unit(one["label"]) + mark,
                percent(one["accuracy"]),
                f"{one['margin']:+.3f} +- {one['margin_stderr']:.3f}",
                nats(one["margin_against_plain"]),
                setting_of(one).model_args,
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
                name,
                *("" if value is None else f"{value / 60:.1f}" for value in minutes),
                f"{sum(log['seconds'].values()) / 60:.1f}",
                *(_reference(log["references"].get(role)) for role in ("weak", "strong")),
            )
        )
    return table(("set", *phases, "all phases", "weak", "strong"), rows)


def _reference(epoch: Content | None) -> str:
    if epoch is None:
        return ""
    return f"epoch {epoch['epoch']}, {percent(epoch['accuracy'])} % of {epoch['problems']}"


def _model(one: Content) -> str:
    recipe: Content = one["recipe"]
    config: Content = recipe.get("config") or {}
    if not config:
        name, weights = str(recipe.get("pretrained", one["folder"])), one.get("weights_file")
        return name if weights is None else f"{name}, the weights of {weights}"
    return (
        f"{config['model_type']} from scratch, {config.get('num_hidden_layers')} layers, width "
        f"{config.get('hidden_size')}"
    )


def _trained_on(one: Content) -> str:
    """What follows the list of splits: how the questions were held apart, or what came before."""
    recipe, train = one["recipe"], one["recipe"].get("train") or []
    names = [train] if isinstance(train, str) else train
    if names and len(one["trained_on"]) > len(names):
        return (
            f" In part before, as {recipe.get('pretrained')}: all else that this page says of the "
            "training is of the last one alone."
        )
    if names and leaves_questions_out(names, bool(recipe.get("check_overlap"))):
        return " Questions of any benchmark's dev or test split were left out."
    return ""


def _power(content: Content) -> str:
    """How small a difference so many problems can show, at best and as the rows differ here."""
    num, first = content["problems"], content["sets"][0]
    at_best = detectable_difference(num, discordant_share=0.0)
    text = (
        "At 5 % significance and 80 % power so many problems show a difference of "
        f"{percent(at_best)} points if none of them changes the other way"
    )
    tests = [
        row["against_coconut"]["test"]
        for row in first["rows"].values()
        if row["setting"] and row["against_coconut"]
    ]
    shares = [(one["only_first"] + one["only_second"]) / num for one in tests if one]
    changed = max(shares, default=0.0)
    if changed <= at_best:
        return f"{text}; refinement changes fewer here, {percent(changed)} % at most."
    at_share = percent(detectable_difference(num, discordant_share=changed))
    return (
        f"{text}, and of {at_share} points if as many change as by refinement here, "
        f"{percent(changed)} % at most."
    )
