"""The losses of training, over the embeddings of a batch."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from freshet.model.neighborhood import Neighborhood
from freshet.model.sampler import SEED_EDGE
from freshet.model.towers import Towers

Loss = Literal["softmax", "in_batch", "bpr"]
"""See `TrainConfig`."""


class Objective(nn.Module):
    """The towers and what a loss learns besides them: `log_scale`, the log of the inverse temperature.

    One module, so that data-parallel training averages every gradient. With `autocast` the layers run in
    bfloat16; norms and losses stay in float32.
    """

    def __init__(self, towers: Towers, loss: Loss, log_scale: float, autocast: bool = False) -> None:
        super().__init__()
        self.towers, self.loss, self.autocast = towers, loss, autocast
        self.log_scale = nn.Parameter(torch.tensor(log_scale))

    def forward(self, graph: Neighborhood, keep_id: Tensor, data: Any) -> Tensor:
        """The loss of a loader's batch `data`, [] float32; `graph` and `keep_id` as in `Towers.forward`."""
        with torch.autocast(keep_id.device.type, torch.bfloat16, enabled=self.autocast):
            user, item = self.towers(graph, keep_id)
        return loss_of(user, item, data, self.log_scale, self.loss)


def loss_of(user: Tensor, item: Tensor, data: Any, log_scale: Tensor, loss: Loss) -> Tensor:
    """Weighted mean loss of a batch's seeds; `user` [q, dim] and `item` [t, dim] are its embeddings."""
    seeds, device = data[SEED_EDGE], user.device
    query, positive = seeds.edge_label_index.to(device)
    weight = seeds.edge_label.to(device)
    if loss == "bpr":
        sign = (user[query] * item[positive]).sum(-1, keepdim=True)
        other = torch.einsum("nd,nkd->nk", user[query], item[seeds.negative.to(device)])
        each = fn.softplus(log_scale.exp() * (other - sign)).mean(dim=1)
    else:
        logits = log_scale.exp() * (user @ item.T)
        each = torch.logsumexp(logits - data["item"].log_q.to(device), dim=1)[query] - logits[query, positive]
    mean: Tensor = (weight * each).sum() / weight.sum().clamp_min(1e-9)
    return mean
