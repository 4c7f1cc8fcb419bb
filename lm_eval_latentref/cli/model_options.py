"""The options that name a set of checkpoints and say how it thinks, as `ask` and `convert` have."""

from __future__ import annotations

from typing import Any

MODEL_OPTIONS: dict[str, dict[str, Any]] = {
    "pretrained": {
        **{"metavar": "NAME"},
        "help": "the model: hub id, folder, adapter, .gguf file or packaged set "
        "(default: smollm2-135m)",
    },
    "strong": {
        **{"metavar": "NAME"},
        "help": "the reference that thoughts move towards: hub id, folder, adapter or state dict",
    },
    "weak": {"metavar": "NAME", "help": "the reference that thoughts move away from, likewise"},
    "weights": {
        **{"metavar": "FILE"},
        "help": "raw state dict to load into the model: a file or REPO_ID:PATH/IN/REPO",
    },
    "latent_steps": {"metavar": "T", "help": "number of thoughts before the answer; 0: none"},
    "memory_rate": {
        **{"metavar": "ALPHA"},
        "help": "share of the thought before that each thought keeps, 0 to 1; 0: off",
    },
    "search_step_size": {
        **{"metavar": "ETA"},
        "help": "how far the contrastive search moves a thought: a number, or 0.3*d/2, that is 0.3 "
        "of the way from weak to strong; 0: off",
    },
    "search_steps": {"metavar": "S", "help": "moves of the search for each thought, 1 or more"},
    "search_gradient": {
        **{"metavar": "KIND"},
        "help": "detached: the references' outputs are constants in the search; through: it also "
        "differentiates them, which is slower",
    },
    "latent_markers": {
        **{"metavar": "KIND"},
        "help": "auto: marker tokens around the thoughts if the checkpoint has them; none: never; "
        "OPEN|CLOSE: these texts",
    },
    "latent_kind": {
        **{"metavar": "KIND"},
        "help": "what is fed as a thought: auto (what the checkpoint was trained with), continuous "
        "(the hidden state), pause (a pause token); for any model: mixture (of token embeddings), "
        "realigned (the hidden state at the norm of an embedding)",
    },
    "latent_stop": {
        **{"metavar": "RULE"},
        "help": "steps: after latent_steps thoughts; end_token, low_entropy, high_entropy, joined "
        "by +: earlier if one of these holds",
    },
}
NAMES_OF_A_SET = ("pretrained", "strong", "weak", "weights")
