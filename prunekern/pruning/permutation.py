"""Channel permutation: which channels share a group of M, at no cost at run time.

N:M keeps N of M neighbours, so it loses most where large weights are neighbours. The channels
between two layers have no order of their own: inside an MLP, inputs of down may change places if
rows of gate and up do likewise; inside a head, inputs of o if rows of v do (with grouped queries,
alike for all heads that read this v). The model computes what it did, up to the order of sums.

The search (Pool and Yu 2021, NeurIPS, "Channel Permutations for N:M Sparsity", has another) takes
one channel out of each group. What group g, by rows r, keeps of any channel c in that place is

    C[c, g] = sum_r top_{N-1}(rest of g) + max(nth of rest of g, c)        one L1 distance matrix

and a swap of the places of groups i and j gains C[i, j] + C[j, i] - C[i, i] - C[j, j] exactly. All
disjoint swaps that gain are made, best first. So energy never falls, and time is bounded: rounds,
each of at most 512 groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekern.pruning.masks import nm_mask, parse_pattern
from prunekern.pruning.torch_masks import is_masked

_GROUPS_A_ROUND = 512


@dataclass(frozen=True)
class PermutedLayer:
    """The layer whose inputs changed places, and the energy that the pattern would keep of it."""

    name: str
    energy_before: float  # share of the sum of squares
    energy_after: float
    reason: str = ""  # why it was left alone, or ""


@dataclass(frozen=True)
class PermuteReport:
    """What `permute_channels` did, layer by layer."""

    pattern: str
    layers: tuple[PermutedLayer, ...]

    def __str__(self) -> str:
        done = [layer for layer in self.layers if not layer.reason]
        width = max((len(layer.name) for layer in self.layers), default=0)
        lines = [
            f"permuted the inputs of {len(done)} of {len(self.layers)} layers for {self.pattern}"
        ]
        for layer in self.layers:
            told = f"{layer.energy_before:6.1%} -> {layer.energy_after:6.1%}"
            told = f"left alone: {layer.reason}" if layer.reason else f"energy kept {told}"
            lines.append(f"  {layer.name:<{width}}  {told}")
        return "\n".join(lines)


def permute_channels(
    model: nn.Module, pattern: str = "2:4", rounds: int = 24, seed: int = 0
) -> PermuteReport:
    """Reorders channels inside MLPs and heads, in place, so that N:M keeps more of down and o.

    To be called before `prune`. Deterministic for a seed.

    Args:
        model: Llama-like: MLPs with gate_proj, up_proj and down_proj; attention with q_proj,
            v_proj, o_proj and head_dim. What differs is left alone, with the reason.
        pattern: "N:M".
        rounds: Of swaps, for each layer; each takes about as long as a product of its weight with
            512 tokens.
        seed: Of which channels are tried together.

    Returns:
        Energy that the pattern keeps of each layer, before and after.

    Raises:
        ValueError: The pattern is not N:M, rounds is not positive, or the model has neither.
    """
    nm = parse_pattern(pattern, "permute_channels")
    if nm is None:
        raise ValueError('permute_channels: pattern must be "N:M", got "unstructured"')
    if rounds < 1:
        raise ValueError(f"permute_channels: rounds must be 1 or more, got {rounds}")
    generator = torch.Generator().manual_seed(seed)
    layers = [
        _permute(name, module, consumer, nm, rounds, generator)
        for name, module, consumer in _consumers(model)
    ]
    if not layers:
        raise ValueError(
            "permute_channels: model must have MLPs with gate_proj, up_proj and down_proj or "
            f"attention with v_proj and o_proj, got {type(model).__name__}"
        )
    return PermuteReport(pattern, tuple(layers))


def _consumers(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Name, module and which child reads the permuted channels."""
    for name, module in model.named_modules():
        children = dict(module.named_children())
        for consumer, producers in (
            ("down_proj", ("gate_proj", "up_proj")),
            ("o_proj", ("q_proj", "v_proj")),
        ):
            if consumer in children and all(p in children for p in producers):
                yield name, module, consumer


def _reason_to_leave(module: nn.Module, consumer: str, m: int) -> str:
    known = {
        "down_proj": ("gate_proj", "up_proj", "down_proj"),
        "o_proj": ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"),
    }[consumer]
    for name, child in module.named_children():
        if name in known and name.endswith("_proj"):
            if type(child) is not nn.Linear:
                return f"{name} is a {type(child).__name__}"
            if is_masked(child):
                return f"{name} is masked by torch.nn.utils.prune"
        elif name not in known and any(True for _ in child.parameters()):
            return f"{name} may know the order of channels"
    if consumer == "o_proj":
        dim = getattr(module, "head_dim", None)
        if not isinstance(dim, int) or module.v_proj.out_features % dim:
            return "its heads are unknown"
        if module.o_proj.in_features % module.v_proj.out_features:
            return "its query heads do not share value heads evenly"
        if dim % m:
            return f"heads of {dim} channels cut groups of {m}"
    return ""


def _permute(
    name: str,
    module: nn.Module,
    consumer: str,
    nm: tuple[int, int],
    rounds: int,
    generator: torch.Generator,
) -> PermutedLayer:
    reader = getattr(module, consumer)
    label = f"{name}.{consumer}" if name else consumer
    reason = _reason_to_leave(module, consumer, nm[1])
    if reason:
        return PermutedLayer(label, 0.0, 0.0, reason)
    # [heads of v, readers of each, channels, N]; an MLP is one head with one reader.
    dim = module.head_dim if consumer == "o_proj" else reader.in_features
    heads = module.v_proj.out_features // dim if consumer == "o_proj" else 1
    writers = [module.v_proj] if consumer == "o_proj" else [module.gate_proj, module.up_proj]
    energy = reader.weight.detach().float().square().t().reshape(heads, -1, dim, len(reader.weight))
    inputs, outputs = [], []
    for head, of_head in enumerate(energy):
        order = _search(of_head.transpose(0, 1).flatten(1), nm, rounds, generator)
        readers = torch.arange(len(of_head), device=order.device)[:, None]
        inputs.append(((head * len(of_head) + readers) * dim + order).flatten())
        outputs.append(head * dim + order)
    before = _kept(reader.weight, nm)
    inputs, outputs = torch.cat(inputs), torch.cat(outputs)
    after = _kept(reader.weight.detach()[:, inputs], nm)
    if after <= before:  # by rounding only: the search gains or leaves the order
        return PermutedLayer(label, before, before)
    with torch.no_grad():
        reader.weight.copy_(reader.weight[:, inputs])
        for writer in writers:
            writer.weight.copy_(writer.weight[outputs])
            if writer.bias is not None:
                writer.bias.copy_(writer.bias[outputs])
    return PermutedLayer(label, before, after)


def _kept(weight: Tensor, nm: tuple[int, int]) -> float:
    """Share of the sum of squares that the pattern keeps."""
    energy = weight.detach().double().square()
    total = energy.sum().item()
    return energy[nm_mask(energy, *nm)].sum().item() / total if total else 1.0


def _search(energy: Tensor, nm: tuple[int, int], rounds: int, generator: torch.Generator) -> Tensor:
    """The order of channels, int64 [K]; what does not fill a group at the end stays there.

    Args:
        energy: [K, rows], float32, not negative.
        nm: N and M.
        rounds: See `permute_channels`.
        generator: On the CPU.
    """
    (n, m), K = nm, len(energy)
    order = torch.arange(K, device=energy.device)
    count = K // m
    if n == m or count < 2:
        return order
    groups = order[: count * m].view(count, m)
    for _ in range(rounds):
        chosen = torch.randperm(count, generator=generator)[:_GROUPS_A_ROUND]
        place = torch.randint(m, (len(chosen),), generator=generator)
        chosen, place = chosen.to(energy.device), place.to(energy.device)
        mine = groups[chosen, place]
        others = torch.arange(m, device=energy.device) != place[:, None]
        rest = energy[groups[chosen][others].view(len(chosen), m - 1)]
        nth = rest.topk(n, dim=1).values[:, -1]
        x = energy[mine]
        # max(a, b) = (a + b + |a - b|) / 2; what top_{N-1} adds cancels in every gain.
        cost = (torch.cdist(x, nth, p=1) + x.sum(1)[:, None] + nth.sum(1)) / 2
        stay = cost.diagonal()
        gain = (cost + cost.t() - stay[:, None] - stay).cpu()
        for i, j in _disjoint_swaps(gain, 1e-6 * float(stay.mean())):
            groups[chosen[i], place[i]], groups[chosen[j], place[j]] = (
                mine[j].clone(),
                mine[i].clone(),
            )
    return order


def _disjoint_swaps(gain: Tensor, least: float) -> Iterator[tuple[int, int]]:
    """Pairs that gain more than `least`, best first, none of them twice."""
    rows, columns = torch.triu(gain > least, diagonal=1).nonzero(as_tuple=True)
    best = gain[rows, columns].argsort(descending=True, stable=True)
    used: set[int] = set()
    for i, j in zip(rows[best].tolist(), columns[best].tolist(), strict=True):
        if i not in used and j not in used:
            used |= {i, j}
            yield i, j
