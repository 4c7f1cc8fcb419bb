"""The options of model arguments: the checkpoints of a set and its settings."""

from __future__ import annotations

from typing import Any

MODEL_OPTIONS: dict[str, dict[str, Any]] = {
    "pretrained": {
        "metavar": "NAME",
        "help": "the model: hub id, folder, adapter, .gguf file or packaged set "
        "(default: smollm2-135m)",
    },
    "strong": {
        "metavar": "NAME",
        "help": "the reference that thoughts move towards: hub id, folder, adapter or state dict",
    },
    "weak": {
        "metavar": "NAME",
        "help": "the reference that thoughts move away from, in the same forms",
    },
    "weights": {
        "metavar": "FILE",
        "help": "raw state dict to load into the model: a file or REPO_ID:PATH/IN/REPO",
    },
    "latent_steps": {"metavar": "T", "help": "number of thoughts before the answer; 0 for none"},
    "memory_rate": {
        "metavar": "ALPHA",
        "help": "weight of the previous thought in each thought, 0 to 1; 0 for none",
    },
    "search_step_size": {
        "metavar": "ETA",
        "help": "step size of the contrastive search: a number, or such as 0.3*d/2 to move by 0.3 "
        "of the difference from weak to strong; 0 for no search",
    },
    "search_steps": {"metavar": "S", "help": "search steps per thought, 1 or more"},
    "search_gradient": {
        "metavar": "KIND",
        "help": "detached: the references' outputs are constants of the search; through: the "
        "gradient flows through the references, which is slower",
    },
    "latent_markers": {
        "metavar": "KIND",
        "help": "auto: marker tokens around the thoughts if the checkpoint has them; none: never; "
        "OPEN|CLOSE: these texts",
    },
    "latent_kind": {
        "metavar": "KIND",
        "help": "the kind of thoughts: auto (the checkpoint's own), continuous (hidden states), "
        "pause (pause tokens), projected or gaussian (by a map in the checkpoint); for any model: "
        "mixture (of token embeddings), realigned (hidden states scaled to the norm of an "
        "embedding)",
    },
    "latent_stop": {
        "metavar": "RULE",
        "help": "when thinking ends: steps (after latent_steps thoughts), or earlier by end_token, "
        "low_entropy or high_entropy, joined by +",
    },
}
NAMES_OF_A_SET = ("pretrained", "strong", "weak", "weights")
