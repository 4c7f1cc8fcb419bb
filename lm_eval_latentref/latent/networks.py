"""A language model in the three parts that the thought loop calls: embed, decode, project.

    network = Network(model)
    hidden_BLD = network.decode(network.embed(ids_BL), cache=network.new_cache(), ...)
    logits_MV = network.project(hidden_BLD[:, -1])

`Network` is one model, or one adapter of a shared model. No code here depends on the model family:
the parts are located through transformers' own conventions. `streams` holds the cache.

Shape suffixes: B batch, L new columns, K all columns, old and new, D hidden size, M selected
positions, V vocabulary.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache, PreTrainedModel

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent import caches
from lm_eval_latentref.latent import transformers_seams as seams
from lm_eval_latentref.latent.peft_seams import AdapterSwitch, is_adapted
from lm_eval_latentref.latent.torch_seams import by_onednn, keep_few_kernels

if TYPE_CHECKING:
    from peft import PeftModel

_active: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Network]] = weakref.WeakKeyDictionary()
"""The network activated last on each model; several networks may share a model."""


class Network:
    """One decoder-only language model, or one adapter on a model that several networks share.

    Args:
        model: in eval mode, on its device; a `PeftModel` if adapters are involved.
        adapter: the name of the PEFT adapter to use; None: the base weights without an adapter.
        lender: the network whose embedding rows are used for `borrowed_ids`.
        borrowed_ids: token ids that this network was not trained on.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        *,
        adapter: str | None = None,
        lender: Network | None = None,
        borrowed_ids: Collection[int] = (),
    ) -> None:
        keep_few_kernels()
        self._switch = AdapterSwitch.of(model) if is_adapted(model) else None
        self._adapter = adapter
        self.causal_lm: PreTrainedModel = model.get_base_model() if self._switch else model
        self._decoder = seams.find_decoder(self.causal_lm)
        self._embedding: nn.Module = self.causal_lm.get_input_embeddings()
        self._head = seams.without_decoder(self.causal_lm, self._decoder)
        self._takes_positions = (
            "position_ids" in inspect.signature(self._decoder.forward).parameters
        )
        self._cache_argument = seams.cache_argument(self._decoder.forward)
        self._lender, self._borrowed_ids = lender, tuple(sorted(borrowed_ids))
        self.hidden_size = self._width()
        weight_dtype = self._embedding.weight.dtype
        # Quantised weights are stored as integers; then the model's dtype is that of activations.
        self.dtype: torch.dtype = (
            weight_dtype if weight_dtype.is_floating_point else self.causal_lm.dtype
        )
        self.num_forwards = 0

    @property
    def device(self) -> torch.device:
        """The device of the input embedding, for inputs; it changes when the model is moved."""
        return seams.execution_device(self._embedding)

    @torch.no_grad()
    def _width(self) -> int:
        # The width of an embedded token, measured: the configuration may give another width
        # (OPT-350m projects its embeddings), and a quantised weight has another shape.
        zero_11 = torch.zeros((1, 1), dtype=torch.long, device=self.device)
        return int(self._embedding(zero_11).shape[-1])

    @property
    def num_embeddings(self) -> int:
        """The number of rows of the input embedding."""
        weight: Any = self._embedding.weight
        return int(weight.shape[0])

    @property
    def devices(self) -> tuple[str, ...]:
        """All devices that hold weights, from accelerate's device map if there is one."""
        places = getattr(self.causal_lm, "hf_device_map", None) or {"": self.device}
        return tuple(dict.fromkeys(str(place) for place in places.values()))

    @contextmanager
    def watching_states(self) -> Iterator[list[Tensor]]:
        """Yield a list to which each forward appends whether each row's last state is finite (B,).

        Raises LatentRefError if a forward after the first reads more than one column: then the
        model has emptied its cache and reads all ids again, and thoughts have no ids.
        """
        finite: list[Tensor] = []

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            states_BLD = output[0]
            if finite and (num_columns := states_BLD.shape[1]) > 1:
                raise LatentRefError(
                    f"{type(self.causal_lm).__name__} reads all {num_columns} columns again while "
                    "it generates, but thoughts have no token ids to read again; give "
                    f"max_length={num_columns - 1} or less"
                )
            finite.append(states_BLD[:, -1].isfinite().all(-1))

        handle = self._decoder.register_forward_hook(hook)
        try:
            yield finite
        finally:
            handle.remove()

    def activate(self) -> None:
        """Switch the model, which may be shared, to this network's adapter."""
        _active[self.causal_lm] = weakref.ref(self)
        if self._switch is not None:
            self._switch.to(self._adapter)

    def embed(self, ids_BL: Tensor) -> Tensor:
        """Input embeddings (B, L, D) of token ids, computed by the model's own embedding layer."""
        self.activate()
        ids_BL = ids_BL.to(self.device)
        if not self._borrowed_ids:
            return self._embedding(ids_BL)
        assert self._lender is not None, "borrowed ids need a lender"
        borrowed_BL = torch.isin(ids_BL, ids_BL.new_tensor(self._borrowed_ids))
        own_BLD = self._embedding(ids_BL.masked_fill(borrowed_BL, 0))
        lent_BLD = self._lender.embed(ids_BL).to(own_BLD)
        self.activate()
        return torch.where(borrowed_BL.unsqueeze(-1), lent_BLD, own_BLD)

    def decode(
        self, embeds_BLD: Tensor, *, cache: DynamicCache, mask_BK: Tensor | None, past: int
    ) -> Tensor:
        """Read new columns: return their hidden states (B, L, D) after the final norm.

        Args:
            cache: the columns read before; the new columns are appended to it.
            mask_BK: bool, True for real columns, old and new; None if no column is padding.
            past: the number of columns read before.
        """
        positions_BL = self._positions(embeds_BLD, mask_BK, past) if self._takes_positions else None
        return self._forward(embeds_BLD, cache, mask_BK, positions_BL)

    def decode_branches(
        self, embeds_BLD: Tensor, *, cache: DynamicCache, sees_BLK: Tensor, positions_BL: Tensor
    ) -> Tensor:
        """Like `decode`, with explicit attention; possible only if `takes_branches`.

        Args:
            sees_BLK: bool, whether a new column (L) attends to a column (K).
            positions_BL: the position of each new column.
        """
        # The mask is additive, not bool: all attentions that take branches accept an additive mask.
        mask_BLK = torch.zeros(sees_BLK.shape, dtype=self.dtype, device=self.device)
        mask_BLK.masked_fill_(~sees_BLK, torch.finfo(self.dtype).min)
        return self._forward(embeds_BLD, cache, mask_BLK.unsqueeze(1), positions_BL)

    @property
    def takes_branches(self) -> bool:
        """Whether `decode_branches` works: the model accepts any position and mask per column."""
        return (
            self._takes_positions
            and seams.takes_any_mask(self.causal_lm)
            and caches.keeps_every_column(self.causal_lm)
        )

    @property
    def reads_in_parts(self) -> bool:
        """Whether rows of different lengths can be read one after another, and this saves time."""
        # A GPU waits for the number of forwards, not for that of columns.
        return self.device.type == "cpu" and caches.keeps_every_column(self.causal_lm)

    @property
    def shares_columns(self) -> bool:
        """Whether rows can read columns that are in memory once for all of them, on this device."""
        return (
            self.device.type == "cpu"
            and self.takes_branches
            and seams.attention_of(self.causal_lm) == "sdpa"
        )

    def _forward(
        self,
        embeds_BLD: Tensor,
        cache: DynamicCache,
        mask: Tensor | None,
        positions_BL: Tensor | None,
    ) -> Tensor:
        self.activate()
        self.num_forwards += 1
        inputs: dict[str, Any] = {"inputs_embeds": embeds_BLD.to(self.device, self.dtype)}
        if positions_BL is not None:
            inputs["position_ids"] = positions_BL
        if self._cache_argument is not None:
            inputs[self._cache_argument] = cache
        with seams.packed_heads(), seams.fused_gelu(), by_onednn():
            return self._decoder(attention_mask=mask, use_cache=True, **inputs).last_hidden_state

    def project(self, hidden_MD: Tensor) -> Tensor:
        """Logits (M, V) of hidden states from the model's own head, with its scaling and caps."""
        self.activate()
        with by_onednn():
            return self._head(inputs_embeds=hidden_MD.unsqueeze(0)).logits[0]

    def before_forward(self, listener: Callable[[int, int], None]) -> RemovableHandle:
        """Call `listener(rows * new columns, columns read before)` at the start of each forward.

        The listener is called for every forward, including those of transformers' `generate`, until
        the returned handle is removed. If networks share a model, a forward counts for the network
        activated last.
        """

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            active = _active.get(self.causal_lm)
            if active is None or active() is not self:
                return
            inputs = seams.given_arguments(module, args, kwargs)
            columns = inputs.get("inputs_embeds")
            columns = inputs["input_ids"] if columns is None else columns
            cache = inputs.get(self._cache_argument) if self._cache_argument else None
            past = 0 if cache is None else int(cache.get_seq_length())
            listener(columns.shape[0] * columns.shape[1], past)

        return self._decoder.register_forward_pre_hook(hook, with_kwargs=True)

    def new_cache(self) -> DynamicCache:
        """An empty cache for this model."""
        return caches.new_cache(self.causal_lm)

    def _positions(self, embeds_BLD: Tensor, mask_BK: Tensor | None, past: int) -> Tensor:
        # A row's first real token has position 0, regardless of padding on its left.
        num_new = embeds_BLD.shape[1]
        if mask_BK is None:
            return torch.arange(past, past + num_new, device=self.device).unsqueeze(0)
        return (mask_BK.cumsum(-1) - 1).clamp(min=0)[:, -num_new:]
