"""Texts of `--help` other than the options: defaults, exit statuses and examples."""

DEFAULTS_OF_A_SET = """\
The default settings are those of the model's latentref.json; without it, latent_steps, memory_rate
and search_step_size are 0, search_steps 1, search_gradient detached, latent_markers auto and
latent_kind continuous."""

STATUSES = """\
Exit status: 0 done, 1 results could not be written, 2 a mistake (described in one line), 130
Ctrl-C, 141 a closed pipe."""

OTHER_STATUSES = "`check` and `leaderboard` have other statuses; see their --help."

EXAMPLES = {
    "ask": 'latentref ask "What is 2 + 3?" --latent_steps 6 --memory_rate 0.3 --show_thoughts',
    "convert": "latentref convert --pretrained gpt2 --weights checkpoint_41 -o out/set",
    "train": "latentref train graph-small output=out/graph seed=1",
    "data": "latentref data graph nodes=12 --num 1000 -o graph.jsonl",
    "sweep": "latentref sweep --pretrained out/graph --task latentref_graph_dev -o results/sweep",
    "study": "latentref study out/graph --task latentref_graph -o results/study",
    "thoughts": "latentref thoughts out/graph --task latentref_graph -o thoughts.md",
    "compare": "latentref compare results/before results/after",
    "leaderboard": "latentref leaderboard plain=results/a refined=results/b -o board.md",
    "check": "latentref check results/new --baseline results/main --max_drop 0.01",
    "demo": "latentref demo --limit 20",
}
