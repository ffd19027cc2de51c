"""Synthetic states: noise, mixtures of real frames, and shifted frames.

Buciluǎ, Caruana, Niculescu-Mizil 2006, "Model Compression": a student may learn from synthetic
inputs as long as the teacher labels them. These are baselines for trained generators.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from agents.augmentation import Augmentation
from agents.distillation.collect import Label
from agents.distillation.dataset import Dataset, hold_out, join
from agents.distillation.pipeline import Pipeline
from agents.distillation.settings import MIXED_FROM, NOISE

Mixture = Literal["convex", "cut"]
RUN = 32
"""States of a synthetic episode: long enough to share frames, short enough to have many."""
SHIFT = 4
"""Pixels by which a shifted state is moved at most (Kostrikov et al. 2021, for 84 × 84)."""


def make_states(pipeline: Pipeline, source: str) -> Dataset:
    """States of noise, or mixtures of states that the teacher plays, labelled by the teacher."""
    environment, label = pipeline.teacher.config["environment"], pipeline.teacher.outputs_of
    count = pipeline.config.states

    def make() -> Dataset:
        if source == NOISE:
            return noise(
                count,
                frame_shape=tuple(environment["frame_shape"]),
                stack=environment["stack"],
                label=label,
                rng=pipeline.state_rng(0),
            )
        real = pipeline.collect_round(0, max(MIXED_FROM, pipeline.config.num_envs))
        rng = pipeline.state_rng(1)
        blended = mixed(real, count - count // 2, how="convex", label=label, rng=rng)
        return join([blended, mixed(real, count // 2, how="cut", label=label, rng=rng)])

    return pipeline.load_or_make(source, source, make, count=count)


def noise(
    count: int,
    *,
    frame_shape: tuple[int, ...],
    stack: int,
    label: Label,
    rng: np.random.Generator,
) -> Dataset:
    """`count` states of uint8 frames in which every pixel is drawn uniformly, and their labels.

    Raises `EbuError` for fewer than two episodes, of `RUN` states each.
    """
    lengths = [min(RUN, count - done) for done in range(0, count, RUN)]
    episodes = [
        torch.from_numpy(rng.integers(256, size=(length + stack - 1, *frame_shape), dtype=np.uint8))
        for length in lengths
    ]
    return _join_episodes(episodes, stack, label, rng)


def mixed(
    real: Dataset, count: int, *, how: Mixture, label: Label, rng: np.random.Generator
) -> Dataset:
    """`count` states made of two real ones each, with the teacher's outputs for the mixture.

    Two runs of consecutive states to train on are mixed frame by frame, so that movement is
    preserved. There is one draw for a whole run:

    | how | frames |
    | --- | --- |
    | convex | λ a + (1 − λ) b, λ uniform in [0, 1] (Zhang et al. 2018, mixup) |
    | cut | a, with a rectangle of uniform corners from b (Yun et al. 2019, CutMix); for images |

    Raises `EbuError` for fewer than two synthetic episodes.
    """
    train = real.train.cpu()
    episodes, made = [], 0
    while made < count:
        one, other = (
            _frames_from(real, int(train[index]), min(RUN, count - made))
            for index in rng.integers(len(train), size=2)
        )
        shorter = min(len(one), len(other))
        one, other = one[:shorter], other[:shorter]
        episodes.append(_convex(one, other, rng) if how == "convex" else _cut(one, other, rng))
        made += shorter - real.stack + 1
    return _join_episodes(episodes, real.stack, label, rng)


def _frames_from(states: Dataset, index: int, length: int) -> Tensor:
    """The frames of at most `length` consecutive states from `index` on, context first."""
    indices = torch.arange(index, min(index + length, len(states)), device=states.device)
    newest, episode = states.newest[indices], states.episode_of(indices)
    consecutive = (newest == newest[0] + torch.arange(len(indices), device=states.device)) & (
        episode == episode[0]
    )
    # Up to the first that is not the next one.
    indices = indices[consecutive.cummin(dim=0).values]
    context = states.stacks(indices[:1])[0, :-1]
    return torch.cat([context, states.frames[states.newest[indices]]]).cpu()


def _convex(one: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    mixed = torch.lerp(other.float(), one.float(), rng.random())
    return mixed.to(one.dtype) if one.is_floating_point() else mixed.round().to(one.dtype)


def _cut(one: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    (top, bottom), (left, right) = (
        sorted(rng.integers(side + 1, size=2).tolist()) for side in one.shape[-2:]
    )
    pasted = one.clone()
    pasted[..., top:bottom, left:right] = other[..., top:bottom, left:right]
    return pasted


def labelled(
    frames: Tensor,
    lengths: Tensor,
    stack: int,
    label: Label,
    rng: np.random.Generator,
    actions: Tensor | None = None,
) -> Dataset:
    """A dataset of frames that nobody played, labelled by the teacher.

    lengths: (E,) int64, the frames of each episode, of which the first stack − 1 are context.
    actions: (N,) int64, of the states; 0 if not given.
    """
    starts = lengths.cumsum(0) - lengths
    context = torch.arange(len(frames)) - starts.repeat_interleave(lengths)
    newest = (context >= stack - 1).nonzero().squeeze(1)
    states = Dataset(
        frames=frames,
        episodes=starts,
        held_out_episodes=hold_out((lengths - stack + 1).numpy(), rng),
        newest=newest,
        outputs=torch.empty(len(newest), 0),
        actions=torch.zeros(len(newest), dtype=torch.int64) if actions is None else actions,
        rewards=torch.zeros(len(newest)),
        terminated=torch.zeros(len(newest), dtype=torch.bool),
        stack=stack,
    )
    return states.relabelled(label)


def _join_episodes(
    episodes: list[Tensor], stack: int, label: Label, rng: np.random.Generator
) -> Dataset:
    lengths = torch.tensor([len(episode) for episode in episodes])
    return labelled(torch.cat(episodes), lengths, stack, label, rng)


def shift(stacks: Tensor, rng: np.random.Generator) -> Tensor:
    """Shift images (B, stack, H, W), each state by up to `SHIFT` pixels both ways, edges repeated.

    All frames of a state move alike. With the labels of the last generation for exactly these
    inputs it is the label refinery (Bagherinezhad et al. 2018); as augmentation Kostrikov et al.
    2021, "Image Augmentation Is All You Need".
    """
    moves = torch.from_numpy(rng.integers(-SHIFT, SHIFT + 1, size=(2, len(stacks))))
    return Augmentation.apply(stacks, -moves.T.to(stacks.device))
