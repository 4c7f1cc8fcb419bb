"""The assumptions of `lm_eval_seams` about lm-eval, with the code in lm-eval that they rely on."""

from __future__ import annotations

import inspect
import logging
import re
import sys
from argparse import ArgumentParser
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace

import pytest
from lm_eval import evaluator
from lm_eval._cli import HarnessCLI
from lm_eval.api.model import CachingLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from sqlitedict import SqliteDict, decode
from tiny_lm import latentref

from lm_eval_latentref.benchmarks.documents import tasks_path
from lm_eval_latentref.harness import lm_eval_seams, response_cache
from lm_eval_latentref.harness.lm_eval_seams import SeamLM, parse_run, recording_unsaved_files

pytestmark = pytest.mark.contract


def source(function):
    return re.sub(r"\s+", "", inspect.getsource(function))


HOOKS = {
    # HFLM.__init__: `self._get_config(pretrained, revision=..., gguf_file=..., ...)`
    "_get_config": "self._get_config(pretrained,revision=",
    # HFLM.__init__: `self._get_backend(config=self.config, ...)`
    "_get_backend": "self._get_backend(config=",
    # HFLM.__init__: `self._create_tokenizer(pretrained, tokenizer, ...)`
    "_create_tokenizer": "self._create_tokenizer(pretrained,tokenizer,",
    # HFLM.__init__: `self._create_model(pretrained=pretrained, ...)`
    "_create_model": "self._create_model(pretrained=pretrained,",
}


@pytest.mark.parametrize("name", HOOKS)
def test_hflm_sets_itself_up_through_the_hooks_that_are_replaced(name):
    assert HOOKS[name] in source(HFLM.__init__)
    assert callable(getattr(HFLM, name))
    assert name in vars(SeamLM)


def test_hflm_ties_weights_only_of_a_module():
    # HFLM.__init__: `if isinstance(self.model, torch.nn.Module): ... self.model.tie_weights()`
    assert "ifisinstance(self.model,torch.nn.Module):self.model.eval()" in source(HFLM.__init__)


def test_hflm_needs_nothing_of_a_model_while_it_is_set_up(folders, monkeypatch):
    seen = []
    monkeypatch.setattr(
        SeamLM, "finish_setting_up", lambda self: seen.append(type(self._model).__name__)
    )
    with pytest.raises(AttributeError, match="reasoner"):
        latentref(folders)
    assert seen == ["_LoadedLater"]


def test_what_stands_for_a_model_while_it_is_set_up_needs_no_unwrapping():
    """With several processes HFLM has an accelerator, which accesses the object that it unwraps."""
    lm = object.__new__(SeamLM)
    lm.accelerator = None
    lm._model = object()
    assert lm.model is lm._model


def test_windows_of_whole_texts_are_scored_through_the_hook_of_pairs():
    # HFLM.loglikelihood_rolling: `self._loglikelihood_tokens(requests=batch_windows, ...)`
    text = source(HFLM.loglikelihood_rolling)
    assert "self._loglikelihood_tokens(requests=batch_windows," in text
    # and its batches are as large as `batch_size` says: `adaptive_batch_size or self.batch_size`.
    assert "batch_size=adaptive_batch_sizeorself.batch_size" in text


def test_without_its_cache_of_logits_hflm_groups_nothing():
    # HFLM._loglikelihood_tokens: `group_by="contexts" if ... and self.logits_cache else None`
    assert "andself.logits_cacheelseNone" in source(HFLM._loglikelihood_tokens)


def test_text_is_written_through_the_hook():
    # HFLM.generate_until: `cont = self._model_generate(context=..., attention_mask=..., ...)`
    text = source(HFLM.generate_until)
    assert "self._model_generate(context=context_enc,attention_mask=attn_masks," in text
    assert list(inspect.signature(HFLM._model_generate).parameters)[:4] == [
        *("self", "context", "max_length", "stop")
    ]


def test_the_place_of_a_process_is_kept_in_two_attributes():
    # HFLM.rank and HFLM.world_size: `return self._rank`, `return self._world_size`
    assert "returnself._rank" in source(HFLM.rank.fget)
    assert "returnself._world_size" in source(HFLM.world_size.fget)


def test_a_pair_is_the_text_with_two_lists_of_ids(folders):
    # TemplateLM.loglikelihood: `new_reqs.append(((context, continuation), context_enc, ...))`
    lm = latentref(folders, "plain")
    seen = []
    lm.score_pairs = lambda requests, disable_tqdm: seen.extend(requests) or [(0.0, True)]
    lm.loglikelihood([SimpleNamespace(args=("a b", " c"), task_name="t", doc_id=0)])
    ((text, context, continuation),) = seen
    assert text == ("a b", " c")
    assert (context, continuation) == (lm.tok_encode("a b"), lm.tok_encode(" c"))


def test_the_command_line_is_parsed_by_a_parser_with_subcommands():
    # HarnessCLI.parse_args: `return self._parser.parse_args()`
    assert source(HarnessCLI.parse_args).endswith("returnself._parser.parse_args()")
    args, execute = parse_run(["--tasks", "a", "--limit", "2"])
    assert (args.command, args.tasks, args.limit) == ("run", ["a"], 2)
    assert execute.__func__ is HarnessCLI.execute
    assert args.model is None


def test_two_threads_that_parse_do_not_mix(monkeypatch):
    inside, before = Barrier(2), list(sys.argv)
    parse = ArgumentParser.parse_args

    def both_at_once(self, *given):
        inside.wait(timeout=60)
        return parse(self, *given)

    monkeypatch.setattr(ArgumentParser, "parse_args", both_at_once)
    with ThreadPoolExecutor(2) as threads:
        parsed = list(threads.map(lambda name: parse_run(["--tasks", name]), "ab"))
    assert [args.tasks for args, _ in parsed] == [["a"], ["b"]]
    assert sys.argv == before


def test_an_evaluation_loads_a_task_when_it_is_built_and_filters_its_answers_once():
    # ConfigurableTask.__init__: `self.download(self.config.dataset_kwargs)`
    assert "self.download(self.config.dataset_kwargs)" in source(ConfigurableTask.__init__)
    # evaluator.evaluate: `task.apply_filters()`
    assert source(evaluator.evaluate).count("task.apply_filters()") == 1


def test_without_a_device_lm_eval_asks_for_a_gpu():
    # EvaluatorConfig: `device: str | None = field(default="cuda:0", ...)`
    assert EvaluatorConfig().device == lm_eval_seams.DEFAULT_DEVICE


@pytest.mark.parametrize("what", ["results", "samples"])
def test_what_cannot_be_saved_is_a_warning_of_the_tracker(tmp_path, what):
    # EvaluationTracker.save_results_aggregated: `eval_logger.warning("Could not save results ...")`
    (tmp_path / "taken").write_text("a file where a folder is needed")
    tracker = EvaluationTracker(output_path=str(tmp_path / "taken"))
    tracker.general_config_tracker.model_name_sanitized = "model"
    with recording_unsaved_files() as unsaved:
        if what == "results":
            tracker.save_results_aggregated(results={}, samples={})
        else:
            tracker.save_results_samples(task_name="task", samples=[])
    assert unsaved[0].startswith(lm_eval_seams.NOT_SAVED)


def test_the_index_of_tasks_knows_groups_members_and_files():
    # TaskManager.task_index: {name: Entry(name, kind, yaml_path, cfg, tags)}
    manager = TaskManager(include_path=[str(tasks_path())], include_defaults=False)
    assert lm_eval_seams.is_group(manager, "latentref")
    assert not lm_eval_seams.is_group(manager, "latentref_graph")
    members = lm_eval_seams.leaves(manager, "latentref")
    assert "latentref_gsm8k" in members
    assert lm_eval_seams.leaves(manager, "latentref_graph") == {"latentref_graph"}
    file = lm_eval_seams.task_file(manager, "latentref_graph")
    assert file == tasks_path() / "latentref_graph.yaml"


def test_the_cache_is_a_table_of_keys_and_pickles(tmp_path):
    # CachingLM.__init__: `self.dbdict = SqliteDict(cache_db, autocommit=True)`
    lm = SimpleNamespace(set_cache_hook=lambda hook: None)
    cached = CachingLM(lm, str(tmp_path / "cache_rank0.db"))
    assert isinstance(cached.dbdict, SqliteDict)
    assert cached.get_cache_hook().dbdict is cached.dbdict
    assert cached.dbdict.tablename == response_cache._TABLE
    cached.dbdict["key"] = (-1.5, True)
    cached.dbdict.commit()
    assert response_cache._read(tmp_path / "cache_rank0.db") == {"key": (-1.5, True)}
    assert cached.dbdict.decode is decode
    cached.dbdict.close()


def test_our_lines_appear_once_where_lm_evals_do_from_its_level_on(caplog):
    for _ in range(2):
        lm_eval_seams.log_as_lm_eval()
    ours = logging.getLogger("lm_eval_latentref.harness")
    for level, seen in ((logging.INFO, ["a line"]), (logging.ERROR, [])):
        caplog.clear()
        with caplog.at_level(level, logger="lm_eval"):
            ours.info("a line")
        assert caplog.messages == seen
