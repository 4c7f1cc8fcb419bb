"""The page of a study, made from its JSON values alone.

    study_page(json.loads(Path("results/mine/results.json").read_text()))

`study_report` makes these values and writes the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lm_eval_latentref.evaluation.report import (
    Content,
    margin_gain,
    nats,
    origin,
    page,
    percent,
    plus_minus,
    points,
    setting_of,
    table,
    with_unit,
)
from lm_eval_latentref.evaluation.statistics import detectable_difference
from lm_eval_latentref.evaluation.study_options import COCONUT
from lm_eval_latentref.evaluation.wording import markdown
from lm_eval_latentref.training.data import leaves_questions_out

_FIVE, _TWO = (1 / 5, "1 in 5: the choices"), (1 / 2, "1 in 2: the answers on offer")
_CANDIDATES = (1 / 2, "1 in 2: one of the two candidates")
CHANCE = {
    "latentref_graph": _CANDIDATES,
    "latentref_arith": (1 / 11, "1 in 11: the numbers 0 to 10"),
    "latentref_prosqa_letters": _CANDIDATES,
    "latentref_prosqa_generated": _CANDIDATES,
    "latentref_mathqa": _FIVE,
    "latentref_mathqa_harness": _FIVE,
    "latentref_aqua": _FIVE,
    "latentref_strategyqa": _TWO,
    "latentref_prosqa": _TWO,
}
"""For tasks where it is known: the accuracy of guessing among the answers, and its explanation."""


_COMPARED = ("row", "accuracy %", "against Coconut, points", "p")
_TABLE = (*_COMPARED, "tokens", "ms", "peak memory GB", "settings")
_CHOICES = (*_COMPARED, "margin", "difference", "tied %", "commonest %")


def study_page(content: Content) -> str:
    """The page: definitions, mean over seeds, each seed, tried settings, trainings, commands."""
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
                "commands": _commands(trained),
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
        origin=origin(content["made_with"]),
    )


def set_name(trained: Content) -> str:
    """The heading of a trained set: its folder, and its training seed if that is known."""
    seed = trained["recipe"].get("seed")
    return str(trained["folder"]) if seed is None else f"{trained['folder']}, training seed {seed}"


_MEANS = (
    "row",
    "accuracy %",
    "each seed",
    "against Coconut, points",
    "over seeds, points",
    "margin, each seed, nats",
)


def _mean_row(content: Content, name: str) -> Sequence[str]:
    mean = content["mean_over_sets"][name]
    rows = [trained["rows"][name] for trained in content["sets"] if name in trained["rows"]]
    return (
        name,
        plus_minus(mean),
        ", ".join(percent(row["accuracy"]) for row in rows),
        "" if name == COCONUT else points(mean["against_coconut"]),
        "" if name == COCONUT else _over_seeds(mean),
        "; ".join(filter(None, map(margin_gain, rows))),
    )


def _over_seeds(mean: Content) -> str:
    over_seeds = mean.get("over_seeds")  # not in files of older releases
    return points(over_seeds) if over_seeds else "-"


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
    """The difference from Coconut, and the p-value if the metric is an accuracy."""
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
    """Accuracy and difference from Coconut by number of steps; empty if there is only one."""
    columns = rows[COCONUT].get("by_steps", {})
    if len(columns) < 2:
        return ""
    head = ("row", *(f"{num} steps ({part['problems']})" for num, part in columns.items()))
    return table(
        head, [(name, *map(_part, row["by_steps"].values())) for name, row in rows.items()]
    )


def _part(part: Content) -> str:
    return f"{percent(part['accuracy'])} ({100 * part['against_coconut']:+.1f})"


def _commands(trained: Content) -> list[str]:
    """The commands of the rows, then those of their margins, each once."""
    rows = trained["rows"].values()
    names = ("command", "margin_command")
    return [line for line in dict.fromkeys(row[name] for name in names for row in rows) if line]


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
    """A remark about the training splits: on an earlier training, or on questions left out."""
    recipe, train = trained["recipe"], trained["recipe"].get("train") or []
    names = [train] if isinstance(train, str) else train
    if names and len(trained["trained_on"]) > len(names):
        return (
            f"Some of them were used in an earlier training, that of {recipe.get('pretrained')}; "
            "everything else on this page about training refers to the last training."
        )
    if names and leaves_questions_out(names, bool(recipe.get("check_overlap"))):
        return "Questions of any benchmark's dev or test split were left out."
    return ""


def _power(content: Content) -> str:
    """The smallest difference that these problems can show, at best and for the refined rows."""
    num, first = content["problems"], content["sets"][0]
    at_best = detectable_difference(num, discordant_share=0.0)
    text = (
        "At 5 % significance and 80 % power, this many problems can show a difference of "
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
        return f"{text}; refinement changes fewer here, at most {percent(changed)} %."
    at_share = percent(detectable_difference(num, discordant_share=changed))
    return (
        f"{text}, and of {at_share} points if as many change as refinement changes here, at most "
        f"{percent(changed)} %."
    )
