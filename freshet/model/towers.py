"""The towers as PyTorch Geometric layers: what is trained, and the truth that serving is compared with.

They run over a `Neighborhood`, bipartite graphs between *roles*: `product` holds every product whose feature
vector is read, `user` and `item` the targets, and `user_product`, `session`, `item_product`, `item_user`
the nodes whose inner state an outer layer reads. The mathematics is in `config.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as fn
from torch_geometric.nn import HeteroConv, SAGEConv

from freshet.model.config import FeatureConfig, TowerConfig
from freshet.model.features import ProductCodes, SessionCodes, UserCodes, table_rows
from freshet.model.neighborhood import EdgeType, Neighborhood
from freshet.model.weights import LAYERS, ROLES, SOURCE_OF_RELATION, Layer, Tower, reads_of
from freshet.store.columns import F32


class WeightedSAGEConv(SAGEConv):  # type: ignore[misc]
    """`SAGEConv` over edge weights that already sum to 1: a weighted mean, then one matrix."""

    def __init__(self, dim: int) -> None:
        super().__init__((dim, dim), dim, aggr="sum", root_weight=False, bias=False)

    def forward(self, x: tuple[Tensor, Tensor], edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        """[owners, dim] from neighbours' states `x[0]`; `x[1]` says how many owners there are."""
        size = (x[0].size(0), x[1].size(0))
        # propagate_type: (x: OptPairTensor, edge_weight: Tensor)
        out: Tensor = self.lin_l(self.propagate(edge_index, x=x, edge_weight=edge_weight, size=size))
        return out

    def message(self, x_j: Tensor, edge_weight: Tensor) -> Tensor:
        return x_j * edge_weight[:, None]


class BagSAGEConv(WeightedSAGEConv):
    """The same function by one fused kernel, several times faster in training; needs edges sorted by owner."""

    def forward(self, x: tuple[Tensor, Tensor], edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        owners = torch.arange(x[1].size(0), device=edge_index.device)
        first = torch.searchsorted(edge_index[1].contiguous(), owners)
        weight = edge_weight.to(x[0].dtype)
        mean = fn.embedding_bag(edge_index[0], x[0], first, mode="sum", per_sample_weights=weight)
        out: Tensor = self.lin_l(mean)
        return out


class HeteroLayer(nn.Module):
    """One layer of one tower: a `HeteroConv` over its relations and a `Linear` for each role's own state."""

    def __init__(self, tower: Tower, layer: Layer, config: TowerConfig, conv: type[WeightedSAGEConv]) -> None:
        super().__init__()
        self.roles = ROLES[tower, layer]
        self.edge_types = edge_types(tower, layer, config)
        self.own = nn.ModuleDict({node: nn.Linear(config.dim, config.dim) for node in self.roles.values()})
        with warnings.catch_warnings():  # the sources belong to another layer: that is meant
            warnings.filterwarnings("ignore", message="There exist node types")
            self.convs = HeteroConv({e: conv(config.dim) for e in self.edge_types}) if self.edge_types else None

    def forward(self, states: dict[str, Tensor], graph: Neighborhood) -> dict[str, Tensor]:
        """New states of the layer's roles, [n, dim] each; `states` holds the owners' own and their sources'."""
        new: dict[str, Tensor] = {role: self.own[node](states[role]) for role, node in self.roles.items()}
        if self.convs is not None:
            index = {e: graph.edge_index[e] for e in self.edge_types}
            weight = {e: graph.edge_weight[e] for e in self.edge_types}
            for role, state in self.convs(states, index, edge_weight_dict=weight).items():
                new[role] = new[role] + state
        return new


class Towers(nn.Module):
    """Both towers and the feature tables they share.

    `fused` chooses `BagSAGEConv` (training); the plain layers are the reference.
    """

    def __init__(self, config: TowerConfig, features: FeatureConfig, id_rows: int, fused: bool = False) -> None:
        super().__init__()
        self.config, self.features = config, features
        self.table = nn.ParameterDict(
            {
                name.replace(".", "_"): nn.Parameter(torch.zeros(rows, config.dim))
                for name, rows in table_rows(features, id_rows).items()
            }
        )
        if features.description_dim:
            self.table["product_description_absent"] = nn.Parameter(torch.zeros(config.dim))
        if config.popularity is not None:
            self.popularity = nn.Parameter(torch.zeros(1))
        conv = BagSAGEConv if fused else WeightedSAGEConv
        self.layer = nn.ModuleDict({f"{t}_{y}": HeteroLayer(t, y, config, conv) for t, y in LAYERS})

    @property
    def device(self) -> torch.device:
        """Where the weights are, and what is computed from them."""
        found: torch.device = self.table["product_id"].device
        return found

    def _put(self, values: np.ndarray) -> Tensor:
        """Codes as int64, all else as it is, on the towers' device."""
        return torch.from_numpy(values if values.dtype.kind in "fb" else values.astype(np.int64)).to(self.device)

    def _rows(self, table: str, codes: np.ndarray) -> Tensor:
        """Rows of a table, [n, dim]. `index_select` because its gradient takes a fifth of that of `table[codes]`."""
        found: Tensor = self.table[table].index_select(0, self._put(codes))
        return found

    def _bag(self, table: Tensor, codes: np.ndarray, mean: bool) -> Tensor:
        """Sum (or mean) of the rows that each row of `codes` [n, k] names; -1 names none."""
        there = codes >= 0
        sizes = there.sum(axis=1)
        offsets = self._put(np.cumsum(sizes) - sizes)
        return fn.embedding_bag(self._put(codes[there]), table, offsets, mode="mean" if mean else "sum")

    def x_product(self, codes: ProductCodes, keep_id: Tensor | None = None) -> Tensor:
        """Feature vectors [n, dim]; where `keep_id` [n] is false the product is taken for unknown (row 0)."""
        t = self.table
        row = self._put(codes.id)
        if keep_id is not None:
            row = torch.where(keep_id, row, 0)
        x: Tensor = self._rows("product_brand", codes.brand) + self._rows("product_price", codes.price)
        x = x + t["product_id"].index_select(0, row)
        x = x + self._bag(t["product_category"], codes.category, mean=False)
        x = x + self._bag(t["product_token"], codes.token, mean=True)
        if codes.description is not None and codes.described is not None:
            there = self._put(codes.described)[:, None]
            given = self._put(codes.description) @ t["product_description"]
            x = x + torch.where(there, given, t["product_description_absent"])
        return x

    def x_user(self, codes: UserCodes) -> Tensor:
        """Feature vectors [n, dim]."""
        x = self._rows("user_age", codes.age) + self._rows("user_geo", codes.geo)
        return x + self._rows("user_signup", codes.signup)

    def x_session(self, codes: SessionCodes) -> Tensor:
        """Feature vectors [n, dim]."""
        return self._rows("session_device", codes.device) + self._rows("session_duration", codes.duration)

    def forward(self, graph: Neighborhood, keep_id: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings of the roles `user` [q, dim] and `item` [t, dim]; see `config.py`."""
        x = self.x_product(graph.product, keep_id)
        return self.encode_users(graph, x), self.encode_items(graph, x)

    def encode_users(self, graph: Neighborhood, x: Tensor) -> Tensor:
        """Embeddings of the role `user`; `x` are the feature vectors of the role `product`."""
        states = {
            "product": x,
            "user": self.x_user(graph.user),
            "user_product": x.index_select(0, graph.origin["user_product"]),
            "session": self.x_session(graph.session),
        }
        inner = self._activated(self.layer["user_inner"](states, graph))
        return self._finished(self.layer["user_outer"](inner, graph)["user"], None)

    def encode_items(self, graph: Neighborhood, x: Tensor) -> Tensor:
        """Embeddings of the role `item`; `x` are the feature vectors of the role `product`."""
        states = {
            "product": x,
            "item_product": x.index_select(0, graph.origin["item_product"]),
            "item_user": self.x_user(graph.item_user),
        }
        inner = self._activated(self.layer["item_inner"](states, graph))
        inner["item"] = inner["item_product"].index_select(0, graph.origin["item"])
        return self._finished(self.layer["item_outer"](inner, graph)["item"], graph.level)

    def _finished(self, states: Tensor, level: Tensor | None) -> Tensor:
        """L2-normalised; with popularity the last coordinate is 1, or the weight times `level` [n]."""
        states = states.float()  # autocast ends in bfloat16
        if self.config.popularity is None:
            return fn.normalize(states, dim=-1)
        last = states.new_ones(states.shape[0]) if level is None else self.popularity * level
        return torch.cat([fn.normalize(states[:, :-1], dim=-1), last[:, None]], dim=1)

    def _activated(self, states: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.config.activation == "relu":
            return {role: state.relu() for role, state in states.items()}
        if self.config.activation == "normalise":
            return {role: fn.normalize(state, dim=-1) for role, state in states.items()}
        return states

    def named_weights(self) -> dict[str, tuple[nn.Parameter, bool]]:
        """Every parameter by its name in a bundle, and whether a bundle holds it transposed."""
        out: dict[str, tuple[nn.Parameter, bool]] = {}
        for name, parameter in self.table.items():
            node, rest = name.split("_", 1)
            out[f"{node}.{rest}"] = (parameter, False)
        if self.config.popularity is not None:
            out["popularity.weight"] = (self.popularity, False)
        for tower, layer in LAYERS:
            module: Any = self.layer[f"{tower}_{layer}"]
            for node, own in module.own.items():
                out[f"{tower}.{layer}.self.{node}"] = (own.weight, True)
                out[f"{tower}.{layer}.bias.{node}"] = (own.bias, False)
            for edge_type in module.edge_types:
                out[f"{tower}.{layer}.{edge_type[1]}"] = (module.convs.convs[edge_type].lin_l.weight, True)
        return out

    def export(self) -> dict[str, F32]:
        """The weights in a bundle's layout: float32, matrices [in, out]."""
        return {
            name: np.ascontiguousarray(p.detach().cpu().T.numpy() if transposed else p.detach().cpu().numpy()).copy()
            for name, (p, transposed) in self.named_weights().items()
        }

    @torch.no_grad()
    def load(self, weights: Mapping[str, F32]) -> Towers:
        """Take the weights of a bundle. Raises KeyError or ValueError, naming the weight that is missing or
        has another shape."""
        for name, (parameter, transposed) in self.named_weights().items():
            if name not in weights:
                raise KeyError(f"weight {name}")
            value = torch.from_numpy(np.array(weights[name]))
            value = value.T if transposed else value
            if value.shape != parameter.shape:
                raise ValueError(f"weight {name} has shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
            parameter.copy_(value)
        return self


def edge_types(tower: Tower, layer: Layer, config: TowerConfig) -> list[EdgeType]:
    """(source role, relation, role) of everything one layer reads."""
    sources = SOURCE_OF_RELATION[tower, layer]
    return [
        (sources[relation], relation, role)
        for role, node in ROLES[tower, layer].items()
        for relation in reads_of(tower, layer, node, config)
    ]
