"""KegNet: distillation without data, on states from generators trained on the teacher alone.

Yoo, Cho, Kim, Kang 2019, "Knowledge Extraction with No Observable Data" (KegNet), made for
classifiers of images. The generators learn how the teacher's outputs change with the pixels, not
which states occur in the game or follow each other.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.distillation.dataset import LABEL_BATCH, Dataset, hold_out
from agents.distillation.experimental.synthetic import noise
from agents.distillation.losses import divergence
from agents.distillation.pipeline import Pipeline
from agents.distillation.records import write_record
from agents.distillation.settings import AUTO, KEGNET, Stopped
from agents.distillation.teachers import temperature_of
from agents.trained import TrainedAgent
from ebu.errors import EbuError, UsageError
from ebu.memory import available_bytes, unfilled
from ebu.run.checkpoint import load_latest, save_checkpoint
from ebu.run.directory import differences
from ebu.run.progress import progress_bar

RECORD = "kegnet.json"
"""Measurements of `generate`, in its directory.

| key | meaning |
| --- | --- |
| temperature | τ of the generators, in units of the teacher's outputs |
| actions | shares of the states in which each action is the teacher's best |
| generators | of each the terms of its loss, means over the last tenth of its updates; wanted: |
| | share of its states in which the teacher's best action is the label |
"""
NOISE_STATES = 512
"""States of noise on which the generators' temperature is measured."""
_TERMS = ("label_divergence", "decoder_error", "diversity")
_STREAM = int.from_bytes(b"kegn")
_DOUBLINGS = 3


@dataclass(frozen=True)
class KegNetConfig:
    """The generators and their training; values without a source are this project's own choice.

    The authors take 20,000 updates of 256 images for each of their generators, on a GPU.
    """

    generators: int = 5
    """Generators, each with its own decoder, for equal parts of the states (authors)."""
    updates: int = 150
    """Gradient steps on each generator: about five minutes for all on one core of a CPU."""
    batch_size: int = 64
    """States generated for a step."""
    learning_rate: float = 2e-3
    """Step size of Adam; the authors' are 1e-4 to 1e-2, by the data set."""
    codes: int = 10
    """Numbers in the noise z, standard normal (authors)."""
    channels: int = 64
    """Of the generator's smallest maps; half as many each time their sides double."""
    decoder_units: int = 120
    """Units of the decoder's hidden layer (authors)."""
    decoder_weight: float = 1.0
    """a, of the decoder's error (authors)."""
    diversity_weight: float = 1.0
    """b, of the diversity in a minibatch (the authors' for the largest of their images)."""


class Generator(nn.Module):
    """G(y, z): labels (B, A) and noise (B, Z), float32, to stacks (B, stack, H, W) in [0, 255].

    A linear layer to maps of an eighth of the sides, then transposed convolutions that double them,
    after batch normalisation (Radford et al. 2016, DCGAN). A stack's frames are channels.
    """

    def __init__(
        self, config: KegNetConfig, teacher: TrainedAgent, generator: torch.Generator
    ) -> None:
        super().__init__()
        stack, self.frame_shape = _shape(teacher)
        widths = [max(stack, config.channels >> level) for level in range(_DOUBLINGS)]
        smallest = [-(-side // 2**_DOUBLINGS) for side in self.frame_shape]
        layers: list[nn.Module] = [
            nn.Linear(teacher.num_actions + config.codes, widths[0] * math.prod(smallest)),
            nn.Unflatten(1, (widths[0], *smallest)),
        ]
        for inputs, outputs in zip(widths, [*widths[1:], stack], strict=True):
            layers += [
                nn.BatchNorm2d(inputs),
                nn.ReLU(inplace=True),
                nn.ConvTranspose2d(inputs, outputs, kernel_size=4, stride=2, padding=1),
            ]
        self.layers = nn.Sequential(*layers)
        _initialise(self, generator)

    def forward(self, labels: Tensor, codes: Tensor) -> Tensor:
        maps = self.layers(torch.cat([labels, codes], dim=1))
        height, width = self.frame_shape
        return 255 * torch.sigmoid(maps[..., :height, :width])


def decoder(config: KegNetConfig, teacher: TrainedAgent, generator: torch.Generator) -> nn.Module:
    """D: stacks (B, stack, H, W) in [0, 1] to the noise (B, Z) they were generated from."""
    stack, frame_shape = _shape(teacher)
    network = nn.Sequential(
        nn.Flatten(),
        nn.Linear(stack * math.prod(frame_shape), config.decoder_units),
        nn.ELU(),
        nn.BatchNorm1d(config.decoder_units),
        nn.Linear(config.decoder_units, config.codes),
    )
    _initialise(network, generator)
    return network


def make_states(pipeline: Pipeline, source: str) -> Dataset:
    """States of generators trained on the pipeline's teacher, generated now or loaded."""
    count = pipeline.config.states

    def make() -> Dataset:
        return generate(
            pipeline.teacher,
            count=count,
            seed=pipeline.config.seed,
            directory=pipeline.config.out / KEGNET,
            should_stop=pipeline.should_stop,
        )

    return pipeline.load_or_make(source, source, make, count=count)


def generate(
    teacher: TrainedAgent,
    *,
    count: int,
    seed: int,
    directory: Path,
    should_stop: Callable[[], bool],
    config: KegNetConfig | None = None,
) -> Dataset:
    """Train generators on a teacher, and label `count` states that they generate.

    No frame of a game is used. Each state is an episode of its own with all its frames, 28 kB on
    Atari. Its action is the label y it was generated for; its outputs are the teacher's for the
    stacks as bytes.

    The generators' τ is `auto` on states of noise: before the generators there are no others. A
    student's `auto` is then the gap on the generated states. Neither need be near the gap in play.

    | argument | meaning |
    | --- | --- |
    | count | at least two, and one for each generator |
    | seed | of all random numbers: the states depend only on it and the teacher |
    | directory | keeps each trained generator, and `RECORD`; after a stop or a kill the same call |
    | | resumes with the first unfinished generator, and generates the same states |
    | should_stop | asked before every update and every batch of states |

    Raises `Stopped` if told to stop; `UsageError` for too few states, more than memory holds, and a
    directory with other generators; `EbuError` where the teacher's outputs give no temperature, a
    loss is no longer a number, a file is damaged or the disk is full.
    """
    config = config or KegNetConfig()
    _check(teacher, config, count)
    making, *streams = np.random.SeedSequence(seed, spawn_key=(_STREAM,)).spawn(
        1 + config.generators
    )
    rng = np.random.default_rng(making)
    temperature = _temperature(teacher, rng)
    source = {**asdict(config), "seed": seed, "teacher_frames": teacher.frames}
    generators: list[Generator] = []
    records: list[dict[str, float]] = []
    with progress_bar("KegNet: updates", config.generators * config.updates, "updates") as progress:
        for number, stream in enumerate(streams):
            done = number * config.updates
            draws = torch.Generator().manual_seed(
                int(np.random.default_rng(stream).integers(2**63))
            )
            generator = Generator(config, teacher, draws).to(teacher.device)
            saved = directory / f"generator-{number}"
            means = _load(saved, generator, source)
            if means is None:
                means = _train(
                    generator,
                    config,
                    teacher,
                    temperature,
                    draws,
                    should_stop,
                    lambda updates, done=done: progress(done + updates),  # type: ignore[misc]
                )
                _save(saved, generator, means, source)
            progress(done + config.updates)
            generators.append(generator.eval())
            records.append(means)
    with progress_bar("KegNet: states", count, "states") as progress:
        states, makers = _make(generators, config, teacher, count, rng, should_stop, progress)
    best = states.outputs.argmax(dim=1)
    for number, record in enumerate(records):
        record["wanted"] = float((best == states.actions)[makers == number].double().mean())
    result = {
        "temperature": temperature,
        "states": count,
        "actions": (torch.bincount(best, minlength=states.num_actions) / count).tolist(),
        "generators": records,
    }
    write_record(directory / RECORD, result)
    return states


def diversity(codes: Tensor, samples: Tensor) -> Tensor:
    """exp(−mean_ij d(z_i, z_j) · d(x_i, x_j)): small where different noise makes different states.

    KegNet. codes (B, …), samples (B, …). d is the squared difference for codes and the
    absolute one for samples, a mean over the elements, so that the exponent keeps its size whatever
    the number of pixels.
    """
    z, x = codes.flatten(1), samples.flatten(1)
    between_codes = (z[None] - z[:, None]).square().mean(dim=2)
    # All differences of pixels at once would take B times the memory of the samples.
    between_samples = torch.cdist(x, x, p=1) / x.shape[1]
    return torch.exp(-(between_codes * between_samples).mean())


def _shape(teacher: TrainedAgent) -> tuple[int, tuple[int, ...]]:
    """Frames in a stack, and the shape of each."""
    environment = teacher.config["environment"]
    return environment["stack"], tuple(environment["frame_shape"])


def _check(teacher: TrainedAgent, config: KegNetConfig, count: int) -> None:
    stack, frame_shape = _shape(teacher)
    fewest = max(2, config.generators)
    if count < fewest:
        raise UsageError(f"--states {count}: KegNet's generators make at least {fewest}")
    size, available = stack * math.prod(frame_shape), available_bytes(torch.device("cpu"))
    if available is not None and count * size > available:
        raise UsageError(
            f"--states {count}: generated states share no frames, so they take "
            f"{count * size / 1e9:.2f} GB of memory, but {available / 1e9:.2f} GB are free: at "
            f"most {available // size} fit"
        )


def _temperature(teacher: TrainedAgent, rng: np.random.Generator) -> float:
    stack, frame_shape = _shape(teacher)
    seen = noise(
        NOISE_STATES, frame_shape=frame_shape, stack=stack, label=teacher.outputs_of, rng=rng
    )
    return temperature_of(AUTO, seen.outputs, kind=teacher.outputs).value


def _train(
    generator: Generator,
    config: KegNetConfig,
    teacher: TrainedAgent,
    temperature: float,
    draws: torch.Generator,
    should_stop: Callable[[], bool],
    progress: Callable[[int], None],
) -> dict[str, float]:
    """Train a generator with a decoder of its own; returns the means of its terms."""
    decodes = decoder(config, teacher, draws).to(teacher.device)
    weights = [*generator.parameters(), *decodes.parameters()]
    optimizer = torch.optim.Adam(weights, lr=config.learning_rate, fused=True)
    of_terms = torch.tensor(
        [1.0, config.decoder_weight, config.diversity_weight], device=teacher.device
    )
    last: deque[Tensor] = deque(maxlen=max(1, config.updates // 10))
    for update in range(config.updates):
        if should_stop():
            raise Stopped
        actions = torch.randint(teacher.num_actions, (config.batch_size,), generator=draws)
        labels = functional.one_hot(actions, teacher.num_actions).float().to(teacher.device)
        codes = torch.randn(config.batch_size, config.codes, generator=draws).to(teacher.device)
        stacks = generator(labels, codes)
        terms = terms_of(
            labels,
            codes,
            stacks / 255,
            teacher.network(stacks),
            decodes(stacks / 255),
            temperature=temperature,
        )
        optimizer.zero_grad(set_to_none=True)
        (of_terms * terms).sum().backward()
        optimizer.step()
        last.append(terms.detach())
        progress(update + 1)
    means = torch.stack([*last]).mean(dim=0).tolist()
    if not all(map(math.isfinite, means)):
        raise EbuError(
            "the loss of a KegNet generator is no longer a number: choose another --seed"
        )
    return dict(zip(_TERMS, means, strict=True))


def terms_of(
    labels: Tensor,
    codes: Tensor,
    shares: Tensor,
    outputs: Tensor,
    decoded: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """KL(y ‖ softmax(Q / τ)), MSE(D(x), z), exp(−mean d(z) d(x)): (3,), without their weights.

    | argument | shape | meaning |
    | --- | --- | --- |
    | labels, codes | (B, A), (B, Z) | y, one-hot or any distributions, and z |
    | shares | (B, stack, H, W) | the states x generated from them, pixels in [0, 1] |
    | outputs, decoded | (B, A), (B, Z) | of the teacher and the decoder for x |
    """
    return torch.stack(
        [
            divergence(labels, outputs / temperature),
            functional.mse_loss(decoded, codes),
            diversity(codes, shares),
        ]
    )


@torch.no_grad()
def _make(
    generators: list[Generator],
    config: KegNetConfig,
    teacher: TrainedAgent,
    count: int,
    rng: np.random.Generator,
    should_stop: Callable[[], bool],
    progress: Callable[[int], None],
) -> tuple[Dataset, Tensor]:
    """Generate states in equal parts; also returns the generator of each: (count,) int64."""
    stack, frame_shape = _shape(teacher)
    frames = unfilled((count * stack, *frame_shape), torch.uint8, torch.device("cpu"))
    stacks = frames.view(count, stack, *frame_shape)
    actions = torch.from_numpy(rng.integers(teacher.num_actions, size=count))
    codes = torch.from_numpy(rng.standard_normal((count, config.codes), dtype=np.float32))
    makers = torch.arange(count) * len(generators) // count
    labels = functional.one_hot(actions, teacher.num_actions).float()
    for number, generator in enumerate(generators):
        for part in (makers == number).nonzero().squeeze(1).split(LABEL_BATCH):
            if should_stop():
                raise Stopped
            made = generator(labels[part].to(teacher.device), codes[part].to(teacher.device))
            stacks[part] = made.round().to(torch.uint8).cpu()
            progress(int(part[-1]) + 1)
    states = Dataset(
        frames=frames,
        episodes=torch.arange(count) * stack,
        held_out_episodes=hold_out(np.ones(count), rng),
        newest=torch.arange(count) * stack + stack - 1,
        outputs=torch.empty(count, 0),
        actions=actions,
        rewards=torch.zeros(count),
        terminated=torch.zeros(count, dtype=torch.bool),
        stack=stack,
    )
    return states.relabelled(teacher.outputs_of), makers


def _save(
    directory: Path, generator: Generator, means: dict[str, float], source: dict[str, Any]
) -> None:
    state = {"generator": dict(generator.state_dict()), "means": means, "source": source}
    save_checkpoint(directory, "trained", state, keep=1)


def _load(directory: Path, generator: Generator, source: dict[str, Any]) -> dict[str, float] | None:
    """Load a trained generator and return its means; None where there is none."""
    checkpoint = load_latest(directory)
    if checkpoint is None:
        return None
    before = checkpoint.state.get("source", {})
    if differing := differences(before, source):
        raise UsageError(
            f"{directory} holds a generator trained otherwise: {'; '.join(differing)}. Choose "
            "another directory"
        )
    try:
        generator.load_state_dict(checkpoint.state["generator"])
    except RuntimeError as error:
        raise EbuError(
            f"{directory} holds a generator for another teacher: choose another directory"
        ) from error
    means: dict[str, float] = checkpoint.state["means"]
    return means


def _initialise(network: nn.Module, generator: torch.Generator) -> None:
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.ConvTranspose2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
