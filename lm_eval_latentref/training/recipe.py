"""The recipe of a training run: one flat, frozen dataclass, from YAML and KEY=VALUE overrides.

    recipe = Recipe(output="out", train=("prosqa",), pretrained="gpt2", max_latent_stage=6)
    recipe = load_recipe("RECIPE.yaml", ["seed=1", "learning_rate=3e-4", "task.num_symbols=10"])

A recipe in the package can be given by its bare name. Fields that Coconut's published configuration
files also have keep their names. Ranges and combinations of fields are checked here; names of
files, models and data are checked where they are used.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval_latentref.checkpoints.files import read_yaml
from lm_eval_latentref.checkpoints.packaged import PACKAGED_MODELS
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.mapping import from_mapping
from lm_eval_latentref.training.curriculum import Curriculum

PHASES = ("no_cot", "cot", "pause", "coconut")
"""The phases in the order in which they are trained."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a training run."""

    output: str
    """Folder of the result. A run that was stopped continues from the state saved there."""

    seed: int = 0
    """From 0 to 2^32 - 1. Initial weights, order of rows and generated problems depend on it."""

    phases: tuple[str, ...] = ("cot", "coconut")
    """The models to train: `no_cot` (the answer alone), `cot` (its epochs become the references),
    `pause` (pause tokens in place of thoughts), `coconut`. The last model is saved in the output
    folder itself, the others in subfolders."""

    start_from_cot: bool = True
    """If true, `pause` and `coconut` start from the best CoT checkpoint (if `cot` is a phase); if
    false, from `pretrained` or `config`, as Coconut does on ProsQA."""

    # The model.

    pretrained: str | None = None
    """Hub id or folder to start from; without it, `config` makes a new model. With `lora`, it may
    be an adapter trained with the same `lora`, whose training is continued."""

    config: dict[str, Any] | None = None
    """The configuration of a new model: `model_type` and any fields of transformers' class."""

    lora: dict[str, Any] | None = None
    """Arguments of PEFT's LoraConfig; without them, all weights are trained."""

    dtype: str = "float32"
    """The dtype of the weights as loaded; under LoRA, the trained weights stay float32."""

    precision: str = "fp32"
    """The precision of the computation: `fp32`, or `bf16` (autocast)."""

    embedding_std: float | None = None
    """For a new model: the initial standard deviation of its input embeddings; without it, the
    configuration's `initializer_range`."""

    spelled_embeddings: bool = False
    """For a new model: words that have a character in the same place begin with similar input
    embeddings, so that a model need not learn each word of a large vocabulary by itself."""

    final_norm: float | None = None
    """For a new model: the initial weights of its final norm. With `embedding_std`, this lets
    thoughts, which are outputs, begin as large as embeddings, which are inputs."""

    # The data.

    train: tuple[str, ...]
    """One or more of: a benchmark, `mathqa_harness` (MathQA with the prompt of lm-eval's own task),
    a generated task, a JSON file with `question`, `steps`, `answer`."""

    validation: str | None = None
    """A JSON file; without it, the dev splits of the benchmarks and tasks in `train`."""

    task: dict[str, Any] = field(default_factory=dict)
    """Arguments of the generator, for a generated task."""

    num_train: int | None = None
    """The number of problems that an epoch takes from each source; without it, all of a data set
    and 10,000 of a generated task. A data set is read in order: each epoch continues where the
    previous one ended, and each source begins at a different place. A generated task draws new
    problems for each epoch."""

    num_validation: int | None = 500
    """The maximum number of problems on which accuracy is measured after each epoch, divided
    equally among the dev splits. `mathqa_harness` has no dev split of its own: add `mathqa` or give
    `validation`."""

    check_overlap: bool = True
    """Whether questions of any benchmark's dev or test split are removed from the training data;
    this needs those splits. Generated tasks have disjoint splits of their own."""

    max_new_tokens: int = 64
    """The maximum number of tokens of an answer in validation."""

    # The schedule. Names and meanings up to `reset_optimizer` are Coconut's.

    c_thought: int = 1
    """The number of thoughts in place of each step."""

    epochs_per_stage: int = 3
    max_latent_stage: int = 3
    pad_latent_to_max: bool = True
    uniform_prob: float = 0.0

    reset_optimizer: bool = True
    """Whether each stage starts with a new optimiser (and warm-up)."""

    first_stage: int = 1
    """The first stage of the curriculum: 1, or 0 for one more stage at the beginning, with all
    steps and no thought between the markers."""

    last_stage: int | None = None
    """The last stage; without it, `max_latent_stage` + 1, in which no step is left."""

    last_stage_epochs: int | None = None
    """Epochs of the last stage; without it, `epochs_per_stage`."""

    no_cot_epochs: int = 10
    cot_epochs: int = 10

    keep_epochs: tuple[str, ...] = ()
    """Epochs to save in the subfolder `epochs`. They are named by phase, stage and epoch: `cot-3`
    is the third epoch of CoT, `coconut-4-1` the first epoch of stage 4."""

    # The references: epochs of CoT, counted from 1. If `cot` is not a phase, they are epochs of the
    # CoT run `pretrained`: its references, or epochs in its `keep_epochs`.

    strong_epoch: int | None = None
    """The epoch that becomes `strong`; without it, the epoch with the best validation accuracy, or
    the strong reference of `pretrained`."""

    weak_epoch: int | None = None
    """The epoch that becomes `weak`; without it, the worst epoch that clearly beats chance (by the
    lower bound of the 95 % interval), or the weak reference of `pretrained`."""

    # Optimisation.

    batch_size: int = 32
    """The number of rows of a global batch, over all processes."""

    micro_batch_size: int | None = None
    """The maximum number of rows in one forward pass; gradients are summed over the batch."""

    micro_batch_tokens: int | None = None
    """The maximum number of columns in one forward pass, padding included; a longer row is read
    alone."""

    learning_rate: float = 1e-4

    latent_learning_rate: float | None = None
    """The learning rate of the phases with thoughts; without it, `learning_rate`."""

    decay: float = 0.0
    """The fraction of a stage's steps, at its end, over which the learning rate falls linearly to a
    twentieth."""

    weight_decay: float = 0.01
    beta2: float = 0.999

    warmup_steps: int = 0
    """The number of steps of a new optimiser over which the learning rate rises linearly."""

    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0 turns clipping off."""

    save_steps: int = 500
    """Steps between two saves of the training state, which is also saved after each epoch."""

    eval_batch_size: int = 64

    def __post_init__(self) -> None:
        _require(bool(self.output.strip()), f"output={self.output!r}", "name a folder")
        _require(0 <= self.seed < 2**32, f"seed={self.seed}", "give an integer from 0 to 2^32 - 1")
        _require(
            bool(self.train) and len(set(self.train)) == len(self.train),
            f"train={', '.join(self.train)}",
            "name one source or more, each once",
        )
        _check_phases(self)
        _check_model(self)
        _check_ranges(self)

    @property
    def curriculum(self) -> Curriculum:
        return Curriculum(
            c_thought=self.c_thought,
            max_latent_stage=self.max_latent_stage,
            pad_latent_to_max=self.pad_latent_to_max,
            uniform_prob=self.uniform_prob,
        )

    @property
    def final_stage(self) -> int:
        return self.curriculum.final_stage if self.last_stage is None else self.last_stage

    @property
    def main_phase(self) -> str:
        """The phase whose model is saved in the output folder itself."""
        return self.phases[-1]

    @property
    def trained_on(self) -> list[str]:
        """The training splits as latentref.json names them; for a file, its name."""
        return [
            Path(source).name if Path(source).is_file() else f"{source} train"
            for source in self.train
        ]

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain YAML values."""
        values = dataclasses.asdict(self)
        for name in ("phases", "train", "keep_epochs"):
            values[name] = list(values[name])
        return values


def _require(condition: bool, given: str, advice: str) -> None:
    if not condition:
        raise LatentRefError(f"{given}: {advice}")


def _check_phases(recipe: Recipe) -> None:
    known = [phase for phase in PHASES if phase in recipe.phases]
    _require(
        bool(recipe.phases) and list(recipe.phases) == known,
        f"phases={', '.join(recipe.phases)}",
        f"give one or more of {', '.join(PHASES)}, each once and in this order",
    )
    _require(
        recipe.start_from_cot or "cot" in recipe.phases,
        f"start_from_cot=False, phases={', '.join(recipe.phases)}",
        "it has no effect without cot among the phases; leave it out",
    )
    _require(
        0 <= recipe.first_stage <= recipe.final_stage <= recipe.curriculum.final_stage,
        f"first_stage={recipe.first_stage}, last_stage={recipe.final_stage}",
        f"they must be in order, from 0 to max_latent_stage + 1 = {recipe.curriculum.final_stage}",
    )


def _check_model(recipe: Recipe) -> None:
    _require(
        (recipe.pretrained is None) != (recipe.config is None),
        f"pretrained={recipe.pretrained}, config={recipe.config}",
        "give one of them: a model to start from, or the configuration of a new one",
    )
    _require(
        recipe.config is None or "model_type" in recipe.config,
        f"config={recipe.config}",
        "it needs a model_type, for example llama or gpt2",
    )
    for name in ("embedding_std", "spelled_embeddings", "final_norm"):
        value = getattr(recipe, name)
        _require(
            recipe.pretrained is None or not value,
            f"{name}={value}",
            "a pretrained model keeps its own; leave it out",
        )
    _require(
        recipe.lora is None or recipe.pretrained is not None,
        f"lora={recipe.lora}",
        "adapters are trained on a pretrained model; give pretrained, or leave lora out",
    )
    for name, choices in (("dtype", ("float32", "bfloat16")), ("precision", ("fp32", "bf16"))):
        value = getattr(recipe, name)
        _require(value in choices, f"{name}={value}", f"it must be {' or '.join(choices)}")
    _require(
        recipe.dtype == "float32" or recipe.lora is not None,
        f"dtype={recipe.dtype}",
        "weights in training are float32; for less memory give precision=bf16 or lora",
    )


_AT_LEAST_ONE = (
    "num_train",
    "num_validation",
    "max_new_tokens",
    "c_thought",
    "epochs_per_stage",
    "last_stage_epochs",
    "no_cot_epochs",
    "cot_epochs",
    "strong_epoch",
    "weak_epoch",
    "batch_size",
    "micro_batch_size",
    "micro_batch_tokens",
    "save_steps",
    "eval_batch_size",
)


def _check_ranges(recipe: Recipe) -> None:
    for name in _AT_LEAST_ONE:
        value = getattr(recipe, name)
        _require(value is None or value >= 1, f"{name}={value}", "it must be at least 1")
    for name in ("uniform_prob", "beta2", "decay"):
        value = getattr(recipe, name)
        _require(value is None or 0 <= value <= 1, f"{name}={value}", "it must be in [0, 1]")
    for name in ("max_latent_stage", "warmup_steps", "max_grad_norm", "weight_decay"):
        value = getattr(recipe, name)
        _require(0 <= value < math.inf, f"{name}={value}", "it must be at least 0 and finite")
    for name in ("learning_rate", "latent_learning_rate", "embedding_std", "final_norm"):
        value = getattr(recipe, name)
        _require(
            value is None or 0 < value < math.inf,
            f"{name}={value}",
            "it must be above 0 and finite",
        )
    for name in ("strong_epoch", "weak_epoch"):
        value = getattr(recipe, name)
        _require(
            value is None or value <= recipe.cot_epochs or "cot" not in recipe.phases,
            f"{name}={value}",
            f"it must be one of the cot_epochs={recipe.cot_epochs}",
        )


RECIPES = Path(__file__).parent / "recipes"


def load_recipe(path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path`, a YAML file or the name of a packaged recipe, with `overrides`.

    Overrides are KEY=VALUE; keys inside dictionaries are written with a dot, as in
    `config.hidden_size=64`. Raises LatentRefError if there is no such recipe, or if a value is not
    allowed.
    """
    values = parse_overrides(overrides, read_yaml(_find(path)))
    return parse_recipe(values, where=path)


def parse_overrides(
    overrides: Sequence[str], values: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """`values` with KEY=VALUE `overrides`, whose values are read as YAML."""
    changed = dict(values or {})
    for override in overrides:
        _override(changed, override)
    return changed


def parse_recipe(values: Mapping[str, Any], *, where: str = "the recipe") -> Recipe:
    """The recipe with these values; numbers may be strings, as on a command line."""
    return from_mapping(Recipe, values, where)


def _find(path: str) -> Path:
    for candidate in (
        Path(path),
        RECIPES / path,
        RECIPES / f"{path}.yaml",
        PACKAGED_MODELS / path,  # such as graph-small/recipe.yaml
    ):
        if candidate.is_file():
            return candidate
    packaged = sorted(file.stem for file in RECIPES.glob("*.yaml"))
    raise LatentRefError(
        f"{path}: no such recipe; give a YAML file or a packaged recipe: {', '.join(packaged)}"
    )


def _override(values: dict[str, Any], override: str) -> None:
    import yaml

    name, equals, text = override.partition("=")
    if not equals or not name:
        raise LatentRefError(f"{override!r} is not KEY=VALUE; write for example seed=1")
    try:
        value = yaml.safe_load(text)
    except Exception:  # a value that is not YAML is a string
        value = text
    *parents, last = name.split(".")
    inner = values
    for parent in parents:
        if not isinstance(inner.get(parent) or {}, dict):
            raise LatentRefError(f"{override!r}: {parent} has no keys of its own; write {parent}=")
        inner[parent] = dict(inner.get(parent) or {})
        inner = inner[parent]
    inner[last] = value
