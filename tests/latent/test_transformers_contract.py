"""The installed transformers has everything that `transformers_seams` and `caches` rely on."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, random_ids, tiny_model, tiny_tokenizer
from transformers import DynamicCache

from lm_eval_latentref.latent import caches
from lm_eval_latentref.latent import transformers_seams as seams
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.loaded import LoadedModel, LoadedSet
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.reasoner import Reasoner
from lm_eval_latentref.latent.streams import Stream
from lm_eval_latentref.latent.transformers_seams import cache_argument, own_cache_argument

pytestmark = pytest.mark.contract


@pytest.mark.parametrize("family", FAMILIES)
def test_no_call_of_ours_uses_a_name_that_transformers_gave_up(family):
    models = [
        LoadedModel(model=tiny_model(family, seed), identity={"name": str(seed)})
        for seed in range(3)
    ]
    loaded = LoadedSet(
        tokenizer=tiny_tokenizer(), backbone=models[0], strong=models[1], weak=models[2]
    )
    contexts = [random_ids(4, seed=1), random_ids(7, seed=2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        reasoner = Reasoner(loaded, RefinementConfig(latent_steps=2, search_step_size=5.0))
        scores = reasoner.score(contexts, [[random_ids(3, seed=3)]] * 2, max_rows=2)
        answers = reasoner.answer(contexts, max_new_tokens=3)
    assert len(scores) == len(answers) == len(contexts)


def test_each_family_takes_the_cache_under_the_name_that_generate_uses():
    forwards = [tiny_model(family).base_model.forward for family in FAMILIES]
    assert {cache_argument(forward) for forward in forwards} == {own_cache_argument()}


def test_the_causal_models_are_known_by_the_class_of_their_configuration():
    """`_BaseAutoModelClass._model_mapping` maps configuration classes to model classes."""
    assert all(seams.has_causal_model(tiny_model(family).config) for family in FAMILIES)
    assert not seams.has_causal_model(transformers.ViTConfig())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_model_knows_its_attention(attention):
    """`PreTrainedConfig._attn_implementation` is the name of the attention that layers use."""
    config = tiny_model("llama").config
    model = transformers.LlamaForCausalLM._from_config(config, attn_implementation=attention)
    assert seams.attention_of(model) == attention


def test_generation_has_defaults_for_what_a_config_leaves_open():
    """`GenerationConfig._get_default_generation_params` has the values for fields that are None."""
    assert seams.generation_default("num_beams") == 1
    assert seams.generation_default("do_sample") is False
    assert seams.generation_default("no such argument") is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_reads_only_hidden_states_off_its_decoder(family):
    """`XForCausalLM.forward`: `hidden_states = outputs.last_hidden_state`, then its own head."""
    model = tiny_model(family)
    head = seams.without_decoder(model, seams.find_decoder(model))
    output = model(torch.tensor([random_ids(5, seed=1)]), output_hidden_states=True)
    logits = head(inputs_embeds=output.hidden_states[-1]).logits
    torch.testing.assert_close(logits, output.logits, rtol=0, atol=1e-5)


def test_layers_of_a_cache_share_tensors_until_they_grow():
    """`DynamicLayer.update` makes new tensors with `torch.cat` and never writes into old ones."""
    model = tiny_model("llama")
    cache = caches.new_cache(model)
    name = seams.own_cache_argument()
    model(torch.tensor([random_ids(5, seed=1)]), **{name: cache})
    branch = caches.fork(cache, torch.tensor([0, 0]))
    before = cache.layers[0].keys.clone()
    model(torch.tensor([random_ids(2, seed=2)] * 2), **{name: branch})
    caches.crop(branch, 1)
    assert (cache.get_seq_length(), branch.get_seq_length()) == (5, 6)
    assert torch.equal(cache.layers[0].keys, before)


def test_generate_never_looks_at_embeddings_of_columns_that_the_cache_has():
    """`GenerationMixin._prefill`: `inputs_embeds[:, -next_sequence_length:]` is all it reads."""
    model, ids_1L = tiny_model("llama"), torch.tensor([random_ids(6, seed=1)])
    cache = caches.new_cache(model)
    model(ids_1L[:, :-1], **{seams.own_cache_argument(): cache})
    inputs = seams.generation_inputs(
        ids_1L,
        torch.ones_like(ids_1L),
        cache=cache,
        num_read=5,
        pending_BPD=model.get_input_embeddings()(ids_1L[:, -1:]),
    )
    inputs["inputs_embeds"][:, :5] = torch.nan
    how = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(**inputs, **how), model.generate(ids_1L, **how))


def test_masks_and_caches_are_as_wide_as_the_configuration_says_when_they_are_made():
    """`masking_utils.create_sliding_window_causal_mask`: `config.sliding_window`, at each call."""
    model, narrow = tiny_model("mistral"), tiny_model("mistral")
    model.config.sliding_window = 200
    narrow.config.sliding_window = 4
    ids_1L = torch.tensor([random_ids(12, seed=1)])
    with torch.no_grad():
        wide = model(ids_1L).logits
        with seams.narrow_windows(model, 4):
            torch.testing.assert_close(model(ids_1L).logits, narrow(ids_1L).logits)
            assert {layer.sliding_window for layer in caches.new_cache(model).layers} == {4}
        assert model.config.sliding_window == 200
        assert torch.equal(model(ids_1L).logits, wide)
    assert not torch.allclose(wide, narrow(ids_1L).logits, atol=1e-2)


MODEL = tiny_model("llama")
steps = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(1, 50)),
        st.tuples(st.just("crop"), st.integers(1, 3)),
        st.tuples(st.just("fork"), st.none()),
        st.tuples(st.just("rows"), st.lists(st.integers(0, 1), min_size=2, max_size=2)),
        st.tuples(st.just("back"), st.none()),
    ),
    max_size=12,
)


@settings(max_examples=100)
@given(steps=steps)
def test_a_growing_layer_holds_what_a_dynamic_layer_holds_forks_included(steps):
    ours, theirs = [caches.new_cache(MODEL)], [DynamicCache(config=MODEL.config)]
    assert {type(layer) for layer in ours[0].layers} == {caches.GrowingLayer}
    for name, value in steps:
        length = theirs[-1].get_seq_length()
        if name == "read":
            new_BHLD = torch.randn(2, 2, value, 8)
            # Every layer, as a model does: transformers 5.20 crops no layer that is empty.
            for layer in range(len(MODEL.model.layers)):
                pair = [stack[-1].update(new_BHLD, -new_BHLD, layer) for stack in (ours, theirs)]
                assert all(map(torch.equal, *pair))
        elif name == "crop" and length > value:
            for stack in (ours, theirs):
                caches.crop(stack[-1], value)
        elif name == "fork":
            ours.append(caches.fork(ours[-1], None))
            theirs.append(copy.deepcopy(theirs[-1]))
        elif name == "rows" and length:
            for stack in (ours, theirs):
                stack[-1].batch_select_indices(torch.tensor(value))
        elif name == "back":
            ours.insert(0, ours.pop())
            theirs.insert(0, theirs.pop())
        for a, b in zip(ours, theirs, strict=True):
            assert a.get_seq_length() == b.get_seq_length()
            if b.get_seq_length():
                assert torch.equal(a.layers[0].keys, b.layers[0].keys)
                assert torch.equal(a.layers[0].values, b.layers[0].values)


@torch.no_grad()
def test_columns_are_written_in_place_and_not_where_a_fork_reads():
    cache, new_BHLD = caches.new_cache(MODEL), torch.randn(2, 2, 5, 8)
    cache.update(new_BHLD, new_BHLD, 0)
    place = cache.layers[0].keys.data_ptr()
    cache.update(new_BHLD, new_BHLD, 0)
    assert cache.layers[0].keys.data_ptr() == place
    fork = caches.fork(cache, None)
    for branch in (cache, fork):
        branch.update(torch.randn(2, 2, 1, 8), new_BHLD[:, :, :1], 0)
    assert not torch.equal(cache.layers[0].keys, fork.layers[0].keys)


def test_columns_that_autograd_may_keep_are_not_written_into():
    """Keys that need no gradient are saved too, for the gradient of the queries."""
    cache, new_BHLD = caches.new_cache(MODEL), torch.randn(2, 2, 5, 8)
    query = torch.randn(2, 2, 5, 8, requires_grad=True)
    keys, _ = cache.update(new_BHLD, new_BHLD, 0)
    scores = query @ keys.transpose(-1, -2)
    cache.update(new_BHLD, new_BHLD, 0)
    (gradient,) = torch.autograd.grad(scores.sum(), query)
    torch.testing.assert_close(gradient, new_BHLD.sum(2, keepdim=True).expand_as(query))


GROUPED = ("llama", "qwen2", "qwen3", "mistral", "gemma3")


@pytest.mark.parametrize("family", GROUPED)
def test_query_heads_that_share_keys_read_them_together_as_they_would_alone(family, monkeypatch):
    """`ALL_ATTENTION_FUNCTIONS["sdpa"]`: the attention that layers look up at each forward."""
    network, usual = Network(tiny_model(family)), seams.ALL_ATTENTION_FUNCTIONS["sdpa"]
    config = network.causal_lm.config
    assert config.num_key_value_heads < config.num_attention_heads
    ids = torch.tensor([[0, 5, 6], [3, 4, 5]])
    real = ids > 0

    def states():
        stream, alone = Stream(network), Stream(network)
        parts = [stream.feed(network.embed(ids), real)[real]]  # padded, two columns, one column
        parts += [stream.feed(network.embed(ids[:, :number])) for number in (2, 1)]
        alone.feed(network.embed(ids[1:]))
        return [*parts, alone.feed(network.embed(ids[1:, :1]))]  # without a mask

    with torch.no_grad():
        packed = states()
        assert seams.ALL_ATTENTION_FUNCTIONS["sdpa"] is usual
        monkeypatch.setattr(seams, "_packed_attention", usual)
        for actual, wanted in zip(packed, states(), strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_new", [1, 2])
def test_keys_that_query_heads_share_are_not_copied(num_new, monkeypatch):
    copied = []
    monkeypatch.setattr(seams.sdpa_attention, "repeat_kv", lambda *args: copied.append(args))
    network = Network(tiny_model("llama"))
    with torch.no_grad():
        stream = Stream(network)
        for columns in ([[0, 5, 6], [3, 4, 5]], [[7] * num_new, [9] * num_new]):
            ids_BL = torch.tensor(columns)
            stream.feed(network.embed(ids_BL), ids_BL > 0)
    assert not copied


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_activation_in_one_operator_is_what_transformers_writes_out(dtype):
    """`NewGELUActivation.forward`, which GPT-2 and others call at each forward."""
    layer, usual = seams.NewGELUActivation(), seams.NewGELUActivation.forward
    states = torch.linspace(-8, 8, 1001, dtype=dtype, requires_grad=True)
    with seams.fused_gelu():
        ours = layer(states)
    assert seams.NewGELUActivation.forward is usual
    wanted = layer(states)
    is_fused = type(ours.grad_fn) is not type(wanted.grad_fn)
    assert is_fused == (dtype == torch.float32)
    gradients = [torch.autograd.grad(values.sum(), states)[0] for values in (ours, wanted)]
    for actual, expected in ((ours, wanted), gradients):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
