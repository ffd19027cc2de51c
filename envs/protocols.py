"""Evaluation protocols: sets of rules; scores are comparable only within one of them."""

from dataclasses import dataclass

from envs.games import is_atari


@dataclass(frozen=True)
class Protocol:
    """The rules of training and evaluation games. Frames are emulator frames, 4 per agent step.

    | field | meaning |
    | --- | --- |
    | repeat_action_probability | sticky actions: the emulator repeats the last action instead |
    | full_action_space | all 18 actions instead of those the game uses |
    | life_loss_ends_segment | in training, no target bootstraps past a lost life |
    | train_noop_max, eval_noop_max | each game starts with up to this many no-ops |
    | train_max_frames, eval_max_frames | a game is truncated after this many frames |
    | eval_epsilon | ε of evaluation; None: the run's final ε |
    | eval_episodes | games of an evaluation |
    | human_table | source of human scores for normalisation: `nature2015` or `57table` |
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

    def evaluation_epsilon(self, game: str, final_epsilon: float) -> float:
        """ε of a run's evaluation; a Gymnasium environment is played without random actions."""
        if not is_atari(game):
            return 0.0
        return final_epsilon if self.eval_epsilon is None else self.eval_epsilon


# Mnih et al. (2015) and Lee et al. (2019), both normalised by the human scores of the former. The
# authors' code has no no-ops in training; the limit of frames ends games that wait for FIRE.
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

# Machado et al. (2018). Papers that follow it play 57 games; for 8 of these only the later table
# has human scores.
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

# Kaiser et al. (2020): 400,000 frames, final weights in 100 games. ε of evaluation as in DrQ of
# Agarwal et al. (2021); games of training begin like those of evaluation.
ATARI100K = Protocol(
    name="atari100k",
    repeat_action_probability=0.0,
    full_action_space=False,
    life_loss_ends_segment=True,
    train_noop_max=30,
    train_max_frames=108_000,
    eval_noop_max=30,
    eval_max_frames=108_000,
    eval_epsilon=0.05,
    eval_episodes=100,
    human_table="57table",
)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol for protocol in (PAPER, MACHADO, ATARI100K)
}
