"""Evaluation protocols: two sets of rules under which scores are comparable, never mixed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """The rules of play. Frames are emulator frames, 4 for each agent step.

    | field | meaning |
    | --- | --- |
    | repeat_action_probability | sticky actions: the emulator repeats the last action instead |
    | full_action_space | all 18 actions instead of those the game uses |
    | life_loss_ends_segment | in training, values do not continue past a lost life |
    | train_noop_max, eval_noop_max | each game starts with up to so many no-ops |
    | train_max_frames, eval_max_frames | a game is cut, as truncated, after so many frames |
    | eval_epsilon | share of random actions in evaluation; None: the run's final ε |
    | eval_episodes | games of an evaluation |
    | human_table | whose human scores normalise: `nature2015` or `57table` |
    """

    name: str
    repeat_action_probability: float
    full_action_space: bool
    life_loss_ends_segment: bool
    train_noop_max: int
    train_max_frames: int
    eval_noop_max: int
    eval_max_frames: int
    eval_epsilon: float | None
    eval_episodes: int
    human_table: str


# Mnih et al. (2015) and Lee et al. (2019). Their human-normalised scores use the human scores of
# the former. The authors' code plays no no-ops in training; the cap ends games that wait for FIRE.
PAPER = Protocol(
    name="paper",
    repeat_action_probability=0.0,
    full_action_space=False,
    life_loss_ends_segment=True,
    train_noop_max=0,
    train_max_frames=108_000,
    eval_noop_max=30,
    eval_max_frames=18_000,
    eval_epsilon=0.05,
    eval_episodes=30,
    human_table="nature2015",
)

# Machado et al. (2018). What is compared under it covers 57 games, 8 of which have human scores in
# the later table only.
MACHADO = Protocol(
    name="machado",
    repeat_action_probability=0.25,
    full_action_space=True,
    life_loss_ends_segment=False,
    train_noop_max=0,
    train_max_frames=108_000,
    eval_noop_max=0,
    eval_max_frames=108_000,
    eval_epsilon=None,
    eval_episodes=100,
    human_table="57table",
)

PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in (PAPER, MACHADO)}
