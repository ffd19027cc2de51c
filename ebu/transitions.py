"""The table of stored transitions, on the host: which can be drawn, and where they lie."""

import numpy as np

from ebu.state_checks import require

# A byte for each slot says how many earlier frames its state holds (its context), and with this
# bit set that a transition starts there.
_TRANSITION = np.uint8(128)
_CONTEXT = np.uint8(127)


class TransitionTable:
    """Which transitions of a ring of L steps of N streams are stored, and where.

    Step t lies in slot t mod L. A transition is stored, and can be drawn, while all frames of its
    state and the next one are: those of its own step, of the next, and of its context.
    """

    BYTES_PER_SLOT = 1

    def __init__(self, ring_length: int, num_streams: int, stack: int) -> None:
        self.ring_length = ring_length
        self.num_streams = num_streams
        self.stack = stack
        self.num_steps = 0
        """The absolute step of the next append."""
        self._starts = np.zeros((ring_length, num_streams), np.uint8)
        self._count = 0
        # Of the frames in a window, those of a state and the next one: how many steps back they
        # are, and for each context which of them were before the game.
        back = np.arange(stack - 1, -2, -1)
        self._offsets = -num_streams * back
        self._before_the_game = back > np.arange(stack)[:, None]
        self._ages = np.arange(stack)

    def __len__(self) -> int:
        """Number of stored transitions."""
        return self._count

    @property
    def num_places(self) -> int:
        """Places for transitions, each used again when the ring comes round."""
        return self.ring_length * self.num_streams

    @property
    def oldest(self) -> int:
        """The oldest step whose frames are stored."""
        return max(0, self.num_steps - self.ring_length)

    def append(self, started: np.ndarray) -> None:
        """Enter the next step, and the transitions that lead to its frames.

        started: (N,) bool, first frame of a new game, to which nothing leads.
        """
        step = self.num_steps
        self.num_steps = step + 1
        context = self._starts[step % self.ring_length]
        if step == 0:
            context[:] = 0
            return
        before = self._starts[(step - 1) % self.ring_length]
        np.minimum(before + np.uint8(1), np.uint8(self.stack - 1), out=context)
        context[started] = 0
        played = ~started
        before |= played * _TRANSITION
        self._count += int(np.count_nonzero(played))

    def expire(self) -> tuple[np.ndarray, np.ndarray]:
        """Once the ring is full, before each append: drop what needs the frames it overwrites.

        Returns slots (stack,) int64, and at which of them and in which streams the state loses its
        oldest frame, (stack, N) bool, whether or not a transition starts there.
        """
        slots = (self.num_steps + self._ages) % self.ring_length
        starts = self._starts.take(slots, axis=0)
        expired = (starts & _CONTEXT) == self._ages[:, None]
        self._count -= int(np.count_nonzero(expired & (starts >= _TRANSITION)))
        return slots, expired

    def draw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Steps and streams, (count,) int64 each, of transitions drawn uniformly.

        From all that are stored, whether their segment is stored as a whole, no longer, or is still
        being played. ValueError if there are none.
        """
        steps, streams = self.draw_minibatches(rng, 1, count)
        return steps[0], streams[0]

    def draw_minibatches(
        self, rng: np.random.Generator, count: int, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """What `count` calls of `draw` give, stacked: (count, size) int64 each."""
        if not self._count:
            raise ValueError("no transition is stored yet")
        before = rng.bit_generator.state
        drawn, stored = self._candidates(rng, count, size)
        stored &= stored.cumsum(axis=1) <= size
        if np.count_nonzero(stored) == count * size:
            drawn = drawn[stored]
        else:
            rng.bit_generator.state = before
            drawn = np.concatenate([self._draw_in_rounds(rng, size) for _ in range(count)])
        ages, streams = np.divmod(drawn.reshape(count, size), self.num_streams)
        return ages + self.oldest, streams

    def _draw_in_rounds(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Draw until `size` candidates, (size,) int64, turned out to be stored."""
        rounds, missing = [], size
        while missing > 0:
            drawn, stored = self._candidates(rng, 1, missing)
            rounds.append(drawn[stored][:missing])
            missing -= len(rounds[-1])
        return np.concatenate(rounds)

    def _candidates(
        self, rng: np.random.Generator, count: int, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Transitions as age · N + stream, some more than (count, size), and which are stored."""
        oldest, streams = self.oldest, self.num_streams
        candidates = (self.num_steps - 1 - oldest) * streams
        drawn = rng.integers(candidates, size=(count, size + size // 8 + 4))
        starts = self._starts.take((drawn + oldest * streams) % self.num_places)
        stored = starts >= _TRANSITION
        stored &= drawn // streams >= (starts & _CONTEXT)
        return drawn, stored

    def places(self, steps: np.ndarray, streams: np.ndarray) -> np.ndarray:
        """The places (B,) int64 of transitions, in [0, num_places)."""
        places: np.ndarray = steps % self.ring_length * self.num_streams + streams
        return places

    def newest_at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Steps and streams, (B,) int64 each, of the newest transitions at these places."""
        slots, streams = np.divmod(places, self.num_streams)
        newest = self.num_steps - 1
        return newest - (newest - slots) % self.ring_length, streams

    def changed_since(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Transitions that are stored, or no longer, other than before this step was appended.

        Those of the steps from `step` on, and the oldest, whose states may have lost frames; the
        newest step leads nowhere yet. Returns places, steps and whether each is stored, (B,).
        """
        newest, oldest = self.num_steps - 1, self.oldest
        aging = np.arange(oldest, min(oldest + self.stack, newest))
        steps = np.concatenate((aging, np.arange(max(oldest, step), newest + 1)))
        steps = steps.repeat(self.num_streams)
        streams = np.arange(len(steps)) % self.num_streams
        return self.places(steps, streams), steps, self.stored(steps, streams)

    def is_stored(self, stream: int, step: int) -> bool:
        """Whether the transition, with its whole state and next state, can be gathered."""
        if not (0 <= stream < self.num_streams and self.oldest <= step < self.num_steps - 1):
            return False
        start = self._starts[step % self.ring_length, stream]
        return bool(start >= _TRANSITION and step - int(start & _CONTEXT) >= self.oldest)

    def stored(self, steps: np.ndarray, streams: np.ndarray) -> np.ndarray:
        """`is_stored` of many: steps, streams (B,) int64 → (B,) bool."""
        return self._look_up(steps, streams)[2]

    def locate(self, steps: np.ndarray, streams: np.ndarray) -> np.ndarray:
        """Where stored transitions lie: (B, 1 + stack + 1) int64.

        The row of the transition, then those of the frames of its window: the state's, oldest
        first, and the next one. steps, streams: (B,) int64; IndexError if one is not stored.
        """
        located = np.empty((len(steps), self.stack + 2), np.int64)
        rows, context, stored = self._look_up(steps, streams)
        if not stored.all():
            raise IndexError("a transition was asked for that is not stored, or not any more")
        located[:, 0] = rows
        self._window(rows, context, out=located[:, 1:])
        return located

    def locate_newest_states(self) -> np.ndarray:
        """The rows of the frames of each stream's newest state, oldest first: (N, stack) int64."""
        slot = (self.num_steps - 1) % self.ring_length
        rows = np.arange(slot * self.num_streams, (slot + 1) * self.num_streams)
        window = np.empty((self.num_streams, self.stack + 1), np.int64)
        self._window(rows, self._starts[slot] & _CONTEXT, out=window)
        return window[:, :-1]

    def _window(self, rows: np.ndarray, context: np.ndarray, *, out: np.ndarray) -> None:
        """Rows of the frames around these rows; the zero row for what was before a game."""
        zero_row = self.num_places
        np.add(rows[:, None], self._offsets, out=out)
        out %= zero_row
        np.copyto(out, zero_row, where=self._before_the_game.take(context, axis=0))

    def _look_up(
        self, steps: np.ndarray, streams: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows of transitions, their contexts, and whether they are stored."""
        ages = steps - self.oldest
        rows = self.places(steps, streams)
        starts = self._starts.take(rows, mode="wrap")
        context = starts & _CONTEXT
        stored = (starts >= _TRANSITION) & (ages >= context)
        # Read without a sign, negative numbers are too large as well.
        stored &= ages.view(np.uint64) < self.num_steps - 1 - self.oldest
        stored &= streams.view(np.uint64) < self.num_streams
        return rows, context, stored

    def neighbours(
        self, steps: np.ndarray, streams: np.ndarray, *, before: int, after: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The transitions around stored ones, in the same games.

        steps, streams: (B,) int64. Returns steps (B, before + 1 + after) int64, oldest first, and
        whether each is connected to the one in the middle by stored transitions of the game (a lost
        life does not part them); where it is not, its step is that of the middle.
        """
        around = steps[:, None] + np.arange(-before, after + 1)
        _, _, joined = self._look_up(around, np.broadcast_to(streams[:, None], around.shape))
        for side in (joined[:, before:], joined[:, before::-1]):
            np.logical_and.accumulate(side, axis=1, out=side)
        return np.where(joined, around, steps[:, None]), joined

    @property
    def slots(self) -> np.ndarray:
        """The slots in use, oldest step first: (S,) int64."""
        return np.arange(self.oldest, self.num_steps) % self.ring_length

    def starts(self) -> np.ndarray:
        """What a checkpoint keeps beside the counts: (S, N) uint8, oldest step first, copied."""
        starts: np.ndarray = self._starts[self.slots]
        return starts

    def load(self, num_steps: int, count: int, starts: np.ndarray) -> None:
        """Take what was saved; `RefusedFileError` for another number of rows."""
        self.num_steps, self._count = num_steps, count
        slots = self.slots
        require(
            len(starts) == len(slots),
            f"replay/columns/starts has {len(starts)} rows, not {len(slots)}",
        )
        self._starts.fill(0)
        self._starts[slots] = starts

    def entries(self) -> tuple[np.ndarray, np.ndarray]:
        """Contexts (S, N) uint8, and where transitions start, (S, N) bool; oldest step first."""
        starts = self.starts()
        return starts & _CONTEXT, starts >= _TRANSITION
