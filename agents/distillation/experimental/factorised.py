"""A trained network with fewer ranks: Tucker-2 of its convolutions, SVD of its first dense layer.

The second and third convolution become three (1 × 1 down, the kernel, 1 × 1 up; Kim et al. 2016),
the first dense layer two; every other layer is copied. The first convolution stays whole: it reads
the pixels, four channels that cannot be fewer.

How the ranks are chosen:

    energy=0.9                     the fewest that keep this share of the squared singular values
    vbmf                           as many as variational Bayes tells from noise
    half                           half the channels, an eighth of the dense layer's rank
    tucker=16,32,32,32,svd=64      these; one half may be left out

energy and vbmf leave at least an eighth of what a layer has: vbmf finds nothing but noise in
weights that have no structure.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import brentq, minimize_scalar
from torch import nn

from agents.architectures import (
    KERNELS,
    Architecture,
    RankRule,
    Ranks,
    architecture,
    ranks_name,
    read_ranks,
)
from agents.networks import (
    LowRankDense,
    NatureTorso,
    PlainHead,
    QNetwork,
    TuckerConvolution,
    build_network,
)
from agents.trained import TrainedAgent
from ebu.errors import UsageError

LEAST_SHARE = 1 / 8
"""Of the full rank, below which energy and vbmf do not go; the dense layer's share in `half`."""


def factorise(teacher: TrainedAgent, how: str) -> tuple[str, QNetwork]:
    """The name of the teacher's network with the ranks of `how`, and the network.

    At full rank its outputs are the teacher's but for rounding. The network lies on the CPU.

    Raises `UsageError` for a choice that is none or does not fit the teacher, for a teacher without
    convolutions or already factorised, and where tensorly is missing.
    """
    choice = read_ranks(how)
    whole = str(teacher.config["settings"]["network"])
    if "@" in whole:
        raise UsageError(f"the teacher's network, {whole}, is factorised already: name another")
    own = teacher.network
    if not isinstance(own, QNetwork) or not isinstance(own[0], NatureTorso):
        raise UsageError("only a network with the three convolutions of this project is factorised")
    name = f"{whole}@{ranks_name(*_ranks(own, architecture(whole), choice))}"
    environment = teacher.config["environment"]
    network = build_network(
        name,
        stack=environment["stack"],
        frame_shape=tuple(environment["frame_shape"]),
        num_actions=teacher.num_actions,
        generator=torch.Generator(),
    )
    with torch.no_grad():
        _fill(network, own)
    return name, network


def energy_rank(matrix: np.ndarray, share: float) -> int:
    """The smallest rank that keeps this share, in (0, 1], of the squared singular values."""
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    # Rounding in the sum must not decide whether the whole of it is reached.
    return int(np.searchsorted(squares.cumsum(), share * squares.sum() * (1 - 1e-12))) + 1


def vbmf_rank(matrix: np.ndarray) -> int:
    """The number of components that empirical variational Bayes keeps, the noise being unknown.

    The analytic global solution of Nakajima, Sugiyama, Babacan and Tomioka, "Global analytic
    solution of fully-observed variational Bayesian matrix factorization", JMLR 14 (2013): singular
    values above a threshold stay, the noise variance minimises the free energy in one dimension.
    The threshold, in units of the noise, is as in their "Condition for perfect dimensionality
    recovery by variational Bayesian PCA", JMLR 16 (2015), its constant solved for and not rounded.
    """
    if not matrix.any():
        return 0
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    # What is missing altogether would have an infinite logarithm.
    squares = squares.clip(min=squares[0] * 1e-30)
    low, high = sorted(matrix.shape)
    ratio = low / high

    def shrinkage(z: float) -> float:
        return math.log1p(z) / z - 0.5

    # Both terms fall; each has its zero at 2.51.
    tau = brentq(lambda t: shrinkage(t) + shrinkage(t / ratio), 2.5 * ratio, 2.6)
    threshold = (1 + tau) * (1 + ratio / tau)

    def free_energy(log_variance: float) -> float:
        x = squares / (high * math.exp(log_variance))
        kept, noise = x[x > threshold], x[x <= threshold]
        excess = kept - (1 + ratio)
        taus = (excess + np.sqrt(excess**2 - 4 * ratio)) / 2
        return float(
            np.sum(noise - np.log(noise))
            + np.sum(kept - taus + np.log((taus + 1) / kept) + ratio * np.log1p(taus / ratio))
        )

    # The most components that can be told from noise; the rest bounds its variance from below.
    most = min(math.ceil(low / (1 + ratio)) - 1, low - 1)
    upper = squares.sum() / (low * high)
    lower = min(upper, max(squares[most] / (high * threshold), squares[most:].mean() / high))
    if lower < upper * 1e-14:
        # Without noise every component that is there stays.
        return int(np.sum(squares > squares[0] * 1e-14))
    found = minimize_scalar(
        free_energy, bounds=(math.log(lower), math.log(upper)), method="bounded"
    )
    return int(np.sum(squares > high * math.exp(found.x) * threshold))


def _ranks(network: QNetwork, sizes: Architecture, choice: RankRule | Ranks) -> Ranks:
    """Ranks of the two convolutions (in, out, in, out) and of the first dense layer."""
    if isinstance(choice, tuple):
        return choice
    dense = [_array(head[0]) for head in network.modules() if isinstance(head, PlainHead)]
    if choice == "half":
        first, second, third = (-(-filters // 2) for filters in sizes.filters)
        return (first, second, second, third), math.ceil(LEAST_SHARE * min(dense[0].shape))
    rule: Callable[[np.ndarray], int] = vbmf_rank
    if isinstance(choice, float):
        rule = functools.partial(energy_rank, share=choice)
    tucker: list[int] = []
    for index in (1, 2):
        weight = _array(network.get_submodule(f"0.{2 * index}"))
        rank_in = _floored(rule, weight.swapaxes(0, 1).reshape(weight.shape[1], -1))
        rank_out = _floored(rule, weight.reshape(weight.shape[0], -1))
        # More than the other side gives through the kernel's pixels is not there.
        pixels = KERNELS[index] ** 2
        tucker += [min(rank_in, rank_out * pixels), min(rank_out, rank_in * pixels)]
    conv2_in, conv2_out, conv3_in, conv3_out = tucker
    return (conv2_in, conv2_out, conv3_in, conv3_out), max(_floored(rule, w) for w in dense)


def _floored(rule: Callable[[np.ndarray], int], matrix: np.ndarray) -> int:
    least: int = math.ceil(LEAST_SHARE * min(matrix.shape))
    return max(rule(matrix), least)


def _array(layer: nn.Module) -> np.ndarray:
    """A layer's weights as float64."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    weight: np.ndarray = layer.weight.detach().cpu().double().numpy()
    return weight


def _fill(copy: nn.Module, source: nn.Module) -> None:
    """Give a factorised network, layer by layer, the weights of the whole one."""
    if isinstance(copy, TuckerConvolution):
        _fill_tucker(copy, source)
    elif isinstance(copy, LowRankDense):
        _fill_low_rank(copy, source)
    elif not list(copy.children()):
        copy.load_state_dict(source.state_dict())
    else:
        for name, child in copy.named_children():
            _fill(child, source.get_submodule(name))


def _fill_tucker(copy: TuckerConvolution, source: nn.Module) -> None:
    import tensorly
    from tensorly.decomposition import partial_tucker

    down, core, up = copy
    assert isinstance(core, nn.Conv2d)
    # A program that uses tensorly for itself may have chosen another kind of arrays.
    with tensorly.backend_context("numpy"):
        (weight, (outputs, inputs)), _ = partial_tucker(
            _array(source), rank=[core.out_channels, core.in_channels], modes=[0, 1], random_state=0
        )
    _set(down, inputs.T[:, :, None, None])
    _set(core, weight)
    _set(up, outputs[:, :, None, None], source)


def _fill_low_rank(copy: LowRankDense, source: nn.Module) -> None:
    first, second = copy
    assert isinstance(first, nn.Linear)
    rank = first.out_features
    left, values, right = np.linalg.svd(_array(source), full_matrices=False)
    # Halves of one size learn at one pace.
    root = np.sqrt(values[:rank])
    _set(first, root[:, None] * right[:rank])
    _set(second, left[:, :rank] * root, source)


def _set(layer: nn.Module, weight: np.ndarray, bias_of: nn.Module | None = None) -> None:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
    if bias_of is not None:
        assert layer.bias is not None
        assert isinstance(bias_of, nn.Conv2d | nn.Linear)
        assert bias_of.bias is not None
        layer.bias.copy_(bias_of.bias)
