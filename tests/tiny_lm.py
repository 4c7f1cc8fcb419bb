"""lm-eval's class on tiny checkpoints, and requests as lm-eval makes them.

    latentref(folders, "marked", **REFINED).loglikelihood(pairs())

The fixture `folders` (conftest) has the folders of the checkpoints.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import HIDDEN_SIZE, tiny_model, tiny_tokenizer

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.harness.model import LatentRefLM

STEP = 3.0 * HIDDEN_SIZE / 2
REFINED = {"latent_steps": 3, "memory_rate": 0.4, "search_step_size": STEP}
CONTEXTS = [
    "Every lempus is a gorpus. Tom is a lempus. Is Tom a gorpus or a wumpus?\n",
    "the average of 3 numbers is 12 .\n",
    "First, add the two.  ",
    "x",
    "",
]
CONTINUATIONS = ["### yes", "### no", " halve it.", "a"]
GREEDY = {"until": ["<never>"], "max_gen_toks": 12, "do_sample": False}


def save(folder, *, seed, markers):
    tiny_model("gpt2", seed).save_pretrained(folder)
    if markers is not None:
        tiny_tokenizer(markers=markers).save_pretrained(folder)
    return str(folder)


def save_checkpoints(root: Path) -> dict[str, str]:
    """Folders of a backbone with and without markers, and of its references."""
    return {
        "marked": save(root / "marked", seed=0, markers=True),
        "plain": save(root / "plain", seed=0, markers=False),
        "strong": save(root / "strong", seed=1, markers=True),
        "weak": save(root / "weak", seed=2, markers=True),
    }


def latentref(folders, name="marked", **kwargs):
    if kwargs.get("search_step_size"):
        kwargs = {"strong": folders["strong"], "weak": folders["weak"], **kwargs}
    defaults = {"device": "cpu", "dtype": "float32", "batch_size": 4}
    return LatentRefLM(folders[name], **{**defaults, **kwargs})


def requests(arguments):
    return [
        SimpleNamespace(args=args, task_name="task", doc_id=number)
        for number, args in enumerate(arguments)
    ]


def pairs():
    return requests([(c, k) for c in CONTEXTS for k in CONTINUATIONS])


def assert_close(actual, wanted):
    assert [greedy for _, greedy in actual] == [greedy for _, greedy in wanted]
    assert [value for value, _ in actual] == pytest.approx([v for v, _ in wanted], abs=1e-4)


def expect_mistake(call, *parts):
    """The one-line error message of `call`, which must contain all `parts`."""
    with pytest.raises(LatentRefError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
    return message
