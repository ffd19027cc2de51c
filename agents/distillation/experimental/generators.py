"""KegNet's generators of states: their networks, their loss, and their training on a teacher.

Yoo, Cho, Kim, Kang 2019, "Knowledge Extraction with No Observable Data", made for classifiers of
images. The authors take 20,000 updates of 256 images for each of their generators, on a GPU.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.distillation.losses import divergence
from agents.distillation.settings import Stopped
from agents.optimizers import Adam
from agents.trained import TrainedAgent
from ebu.errors import EbuError

_DOUBLINGS = 3


@dataclass(frozen=True)
class KegNetConfig:
    """The generators and their training; values without a source are this project's own choice."""

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


def shape_of(teacher: TrainedAgent) -> tuple[int, ...]:
    """The shape (stack, H, W) of the states that a teacher sees."""
    environment = teacher.config["environment"]
    return environment["stack"], *environment["frame_shape"]


class Generator(nn.Module):
    """G(y, z): labels (B, A) and noise (B, Z), float32, to stacks (B, stack, H, W) in [0, 255].

    A linear layer to maps of an eighth of the sides, then transposed convolutions that double them,
    after batch normalisation (Radford et al. 2016, DCGAN). A stack's frames are channels.
    """

    def __init__(
        self, config: KegNetConfig, teacher: TrainedAgent, generator: torch.Generator
    ) -> None:
        super().__init__()
        stack, *self.sides = shape_of(teacher)
        widths = [max(stack, config.channels >> level) for level in range(_DOUBLINGS)]
        smallest = [-(-side // 2**_DOUBLINGS) for side in self.sides]
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
        height, width = self.sides
        return 255 * torch.sigmoid(maps[..., :height, :width])


def decoder(config: KegNetConfig, teacher: TrainedAgent, generator: torch.Generator) -> nn.Module:
    """D: stacks (B, stack, H, W) in [0, 1] to the noise (B, Z) they were generated from."""
    network = nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape_of(teacher)), config.decoder_units),
        nn.ELU(),
        nn.BatchNorm1d(config.decoder_units),
        nn.Linear(config.decoder_units, config.codes),
    )
    _initialise(network, generator)
    return network


def _initialise(network: nn.Module, generator: torch.Generator) -> None:
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.ConvTranspose2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def diversity(codes: Tensor, samples: Tensor) -> Tensor:
    """exp(−mean_ij d(z_i, z_j) · d(x_i, x_j)): small where different noise makes different states.

    codes (B, …), samples (B, …). d is the squared difference for codes and the absolute one for
    samples, a mean over the elements, so that the exponent keeps its size whatever the number of
    pixels.
    """
    z, x = codes.flatten(1), samples.flatten(1)
    between_codes = (z[None] - z[:, None]).square().mean(dim=2)
    # All differences of pixels at once would take B times the memory of the samples.
    between_samples = torch.cdist(x, x, p=1) / x.shape[1]
    return torch.exp(-(between_codes * between_samples).mean())


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


def train_generator(
    generator: Generator,
    config: KegNetConfig,
    teacher: TrainedAgent,
    temperature: float,
    draws: torch.Generator,
    should_stop: Callable[[], bool],
    progress: Callable[[int], None],
) -> dict[str, float]:
    """Train a generator with a decoder of its own; returns the means of its terms.

    The means are over the last tenth of the updates. Raises `Stopped` if told to stop, `EbuError`
    where the loss is no longer a number.
    """
    decodes = decoder(config, teacher, draws).to(teacher.device)
    weights = [*generator.parameters(), *decodes.parameters()]
    optimizer = Adam(weights, learning_rate=config.learning_rate)
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
        optimizer.zero_grad()
        (of_terms * terms).sum().backward()
        optimizer.step()
        last.append(terms.detach())
        progress(update + 1)
    means = torch.stack([*last]).mean(dim=0).tolist()
    if not all(map(math.isfinite, means)):
        raise EbuError(
            "the loss of a KegNet generator is no longer a number: choose another --seed"
        )
    return dict(zip(("label_divergence", "decoder_error", "diversity"), means, strict=True))
