"""GGUF files are unpacked once, and the unpacked model equals the parsed model."""

from __future__ import annotations

import contextlib
import json
import logging

import gguf
import numpy as np
import pytest
import torch
from tiny import tiny_tokenizer
from torch.torch_version import TorchVersion
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from lm_eval_latentref.checkpoints import opening, unpacked
from lm_eval_latentref.checkpoints.opening import StrictAutoModel
from lm_eval_latentref.checkpoints.sources import Source
from lm_eval_latentref.errors import LatentRefError

FILE = "tiny.gguf"
WHERE = {"gguf_file": FILE}


def write_gguf(path):
    """A llama of two layers with random weights, quantised to eight bits, and a tokenizer."""
    parts = json.loads(tiny_tokenizer(markers=False).backend_tokenizer.to_str())["model"]
    tokens = sorted(parts["vocab"], key=parts["vocab"].get)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges([" ".join(pair) for pair in parts["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,)}
    for layer in range(2):
        block = {
            "attn_q": (32, 32),
            "attn_k": (16, 32),
            "attn_v": (16, 32),
            "attn_output": (32, 32),
        }
        block |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
        block |= {"attn_norm": (32,), "ffn_norm": (32,)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    random, kind = np.random.default_rng(0), gguf.GGMLQuantizationType.Q8_0
    for name, shape in shapes.items():
        values = random.standard_normal(shape, dtype=np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", values)
        else:
            blocks = gguf.quants.quantize(values, kind)
            writer.add_tensor(f"{name}.weight", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / FILE)
    return str(folder)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacked.constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(unpacked, "_refused", set())
    return unpacked.cache_folder()


@pytest.fixture
def parses(monkeypatch):
    """The names of the parts that were written."""
    parts = []
    for name in ("_write_header", "_write_weights"):
        write = getattr(unpacked, name)
        monkeypatch.setattr(
            unpacked, name, lambda *args, write=write: parts.append(args[-1].name) or write(*args)
        )
    return parts


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", torch.float16])
def test_weights_are_those_of_the_parsed_file_in_every_dtype(folder, cache, dtype):
    expected = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=dtype)
    name, kwargs = unpacked.weights(folder, {**WHERE, "dtype": dtype})
    assert name.startswith(str(cache))
    assert kwargs == {"dtype": dtype}
    actual = StrictAutoModel.from_pretrained(folder, **WHERE, dtype=dtype)
    tensors = actual.state_dict()
    assert actual.dtype == expected.dtype
    assert tensors.keys() == expected.state_dict().keys()
    for key, tensor in expected.state_dict().items():
        assert tensors[key].dtype == tensor.dtype
        assert torch.equal(tensors[key], tensor)
    ids = torch.arange(1, 20)[None]
    assert torch.equal(actual(ids).logits, expected(ids).logits)
    ours, theirs = (model.generation_config.to_dict() for model in (actual, expected))
    assert ours == theirs
    assert actual.get_output_embeddings().weight is actual.get_input_embeddings().weight


@pytest.mark.parametrize("options", [{}, {"add_bos_token": True}, {"add_bos_token": False}])
def test_tokenizer_and_configuration_are_those_of_the_parsed_file(folder, cache, options):
    name, where = unpacked.header(folder, WHERE)
    assert (name.startswith(str(cache)), where) == (True, {})
    ours = AutoTokenizer.from_pretrained(name, **options)
    theirs = AutoTokenizer.from_pretrained(folder, **WHERE, **options)
    assert unpacked.tokenizer_facts(ours) == unpacked.tokenizer_facts(theirs)
    text = "Every lempus is a gorpus.\n### 12 <|endoftext|> b"
    assert ours(text).input_ids == theirs(text).input_ids
    assert ours.decode(ours(text).input_ids) == theirs.decode(theirs(text).input_ids)
    own = {"_name_or_path": None, "transformers_version": None}
    configs = AutoConfig.from_pretrained(name), AutoConfig.from_pretrained(folder, **WHERE)
    assert configs[0].to_dict() | own == configs[1].to_dict() | own


def test_a_file_is_unpacked_once_and_named_in_one_line(folder, cache, parses, caplog):
    caplog.set_level(logging.INFO, logger=unpacked.__name__)
    first = unpacked.header(folder, WHERE)
    assert unpacked.header(folder, WHERE) == first
    assert len(parses) == 1
    (record,) = caplog.records
    assert FILE in record.getMessage()
    assert first[0] in record.getMessage()


def test_another_file_has_another_entry(folder, cache, tmp_path):
    name, _ = unpacked.header(folder, WHERE)
    content = tmp_path / FILE
    with open(f"{folder}/{FILE}", "rb") as file:
        content.write_bytes(file.read() + b"\0")
    assert unpacked.header(str(tmp_path), WHERE)[0] != name


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [flip, lambda path: path.unlink(), lambda path: path.write_bytes(b"")]
)
def test_a_damaged_entry_is_made_anew(folder, cache, parses, damage):
    expected = AutoModelForCausalLM.from_pretrained(folder, **WHERE, dtype="float32").state_dict()
    kwargs = {**WHERE, "dtype": "float32"}
    name, _ = unpacked.weights(folder, kwargs)
    damage(next(cache.glob("*/float32/model.safetensors")))
    assert unpacked.weights(folder, kwargs)[0] == name
    assert len(parses) == 2
    actual = AutoModelForCausalLM.from_pretrained(name).state_dict()
    assert all(torch.equal(actual[key], tensor) for key, tensor in expected.items())


def test_what_a_stopped_process_left_is_no_entry_and_goes(folder, cache, parses):
    name, _ = unpacked.header(folder, WHERE)
    entry = next(cache.glob("*/header"))
    (entry / unpacked.WRITTEN).unlink()
    entry.rename(entry.with_name(".header.tmp"))
    assert unpacked.header(folder, WHERE)[0] == name
    assert sorted(path.name for path in entry.parent.iterdir()) == [".header.lock", "header"]


def test_a_failure_while_writing_leaves_no_entry(folder, cache, monkeypatch):
    def fail(at, target):
        (target / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unpacked, "_write_header", fail)
    assert unpacked.header(folder, WHERE) == (folder, WHERE)
    assert not list(cache.glob("*/header")) + list(cache.glob("*/.header.tmp"))


def test_without_a_writable_cache_the_file_is_parsed_and_that_is_said_once(
    folder, cache, monkeypatch, tmp_path, caplog
):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(unpacked.constants, "HF_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert unpacked.header(folder, WHERE) == (folder, WHERE)
    (record,) = caplog.records
    assert "parsed at every start" in record.getMessage()


def test_what_reads_back_otherwise_is_parsed(folder, cache, monkeypatch, caplog):
    facts = iter(range(10))
    monkeypatch.setattr(unpacked, "tokenizer_facts", lambda tokenizer: next(facts))
    assert unpacked.header(folder, WHERE) == (folder, WHERE)
    assert "its tokenizer differs when read back" in caplog.text


@pytest.mark.parametrize("option", [{"quantization_config": {}}, {"dtype": {"": "float32"}}])
def test_other_checkpoints_and_quantised_loading_are_left_alone(folder, cache, option):
    assert unpacked.header("name", {"revision": "main"}) == ("name", {"revision": "main"})
    assert unpacked.weights(folder, {**WHERE, **option}) == (folder, {**WHERE, **option})
    assert not cache.exists()


@pytest.fixture
def checked(folder, cache):
    """Loads the model, changes it, and returns whether it was checked."""

    def was_checked(change=lambda model: None, name=None, passes=True, **options):
        if name is None:
            name, options = unpacked.weights(folder, {**WHERE, "dtype": "float32", **options})
        model = AutoModelForCausalLM.from_pretrained(name, **options)
        change(model)
        calls = []

        def check():
            calls.append(model)
            if not passes:
                raise LatentRefError("it lacks a property")

        with contextlib.suppress(LatentRefError):
            unpacked.check_once(model, check)
        return bool(calls)

    return was_checked


def test_a_model_that_has_passed_is_not_checked_again(checked):
    assert [checked(), checked()] == [True, False]


def test_a_model_that_has_not_passed_is_checked_again(checked):
    assert [checked(passes=False), checked(), checked()] == [True, True, False]


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.config, "rms_norm_eps", 1e-3),
        lambda model: setattr(model.config, "_attn_implementation", "eager"),
        lambda model: model.bfloat16(),
        lambda model: model.to("meta"),
        lambda model: setattr(model, "hf_device_map", {"": "disk"}),
        lambda model: setattr(type(model), "__module__", "json"),  # another source file
    ],
)
def test_what_differs_is_checked(checked, change, monkeypatch):
    checked()
    monkeypatch.setattr(LlamaForCausalLM, "__module__", LlamaForCausalLM.__module__)
    assert checked(change)


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (torch, "__version__", TorchVersion(f"{torch.__version__}x")),
        (torch.backends.cpu, "get_cpu_capability", lambda: "another"),
        (unpacked, "_names_of_gpus", lambda: ["a GPU"]),
        (unpacked.latent, "__file__", __file__),  # another version of our code
    ],
)
def test_a_model_is_checked_again_on_another_machine_or_by_other_code(
    checked, monkeypatch, place, name, value
):
    checked()
    monkeypatch.setattr(place, name, value)
    assert [checked(), checked()] == [True, False]


def test_models_whose_weights_may_change_are_always_checked(checked, folder, tmp_path):
    name, options = unpacked.weights(folder, {**WHERE, "dtype": "float32"})
    AutoModelForCausalLM.from_pretrained(name, **options).save_pretrained(tmp_path / "plain")
    assert [checked(name=str(tmp_path / "plain")) for _ in range(2)] == [True, True]
    assert [checked(name=folder, **WHERE) for _ in range(2)] == [True, True]
    assert checked(lambda model: setattr(model, "name_or_path", ""))


def test_without_a_place_for_the_mark_a_model_is_checked_at_every_start(
    checked, cache, monkeypatch
):
    def full(path):
        raise OSError(28, "No space left on device")

    checked(passes=False)
    monkeypatch.setattr(unpacked.Path, "touch", full)
    assert [checked(), checked()] == [True, True]


def test_the_base_of_a_gguf_file_is_checked_when_it_is_opened_first(folder, cache, monkeypatch):
    source = Source(base=folder, gguf_file=FILE)
    names = []
    monkeypatch.setattr(opening, "check_model", lambda model, name: names.append(name))
    for _ in range(2):
        opening.open_model(opening.default_loader(), source)
    assert names == [folder]
