"""The training loss: cross-entropy of the text after the thoughts.

    loss = loss_sum(rows, network=network, markers=markers)
    (loss / num_labelled(batch)).backward()

The same loop makes the thoughts in training and in inference, so that both compute the same values.
Logits are computed at labelled positions only.

Shape suffixes: B batch, P pending columns, L text columns, D hidden size, M labelled positions,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.kinds import CONTINUOUS, Kind
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.thoughts import Context, Markers, think
from lm_eval_latentref.training.curriculum import Row


def num_labelled(rows: Sequence[Row]) -> int:
    """The number of labelled tokens in `rows`."""
    return sum(len(row.target) for row in rows)


def loss_sum(
    rows: Sequence[Row],
    *,
    network: Network,
    markers: Markers | None,
    kind: Kind = CONTINUOUS,
) -> Tensor:
    """Sum of the cross-entropies of all labelled tokens of `rows`: a scalar in float32 or float64.

    Args:
        rows: rows with the same number of thoughts.
        markers: the marker tokens around the thoughts; None to train without them.
        kind: the kind of thoughts.
    """
    (num_thoughts,) = {row.num_thoughts for row in rows}
    thoughts = think(
        Context.pad([row.context for row in rows], device=network.device),
        backbone=network,
        references=None,
        config=RefinementConfig(latent_steps=num_thoughts),
        markers=markers,
        kind=kind,
    )
    target_BL, labelled_M = _pad_right([row.target for row in rows], network.device)
    # The last pending column predicts the first token, and the last token predicts nothing. The
    # padding is after all real columns, which do not attend to it, so it needs no mask.
    text_BLD = network.embed(target_BL[:, :-1]).to(thoughts.pending_BPD)
    columns_BLD = torch.cat([thoughts.pending_BPD, text_BLD], dim=1)
    mask_BL = thoughts.pending_mask_BP
    if mask_BL is not None:
        mask_BL = torch.nn.functional.pad(mask_BL, (0, text_BLD.shape[1]), value=True)
    hidden_BLD = thoughts.stream.feed(columns_BLD, mask_BL)[:, -target_BL.shape[1] :]
    logits_MV = network.project(hidden_BLD.flatten(0, 1).index_select(0, labelled_M))
    if logits_MV.dtype in (torch.bfloat16, torch.float16):
        logits_MV = logits_MV.float()
    labels_M = target_BL.flatten().index_select(0, labelled_M)
    return torch.nn.functional.cross_entropy(logits_MV, labels_M, reduction="sum")


def _pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (B, L), and the positions (M,) of the real ones in the flattened batch.

    Positions are computed on the CPU, because indexing by a mask would wait for the device.
    """
    longest = max(map(len, rows))
    ids_BL = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    lengths_B1 = torch.tensor([[len(row)] for row in rows])
    real_BL = torch.arange(longest) < lengths_B1
    real_M = real_BL.flatten().nonzero()[:, 0]
    return ids_BL.to(device, non_blocking=True), real_M.to(device, non_blocking=True)
