"""One gradient step: the optimizers, the loss, the target network, and how a learner is saved."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.learner import Learner
from agents.optimizers import Adam, CenteredRMSProp, Optimizer
from agents.settings import LearnerConfig
from tests.made_up import same, through_disk

CPU = torch.device("cpu")
NUM_ACTIONS = 4
OPTIMIZERS = ("adam", "rmsprop")


def learner_of(
    seed: int = 0,
    *,
    precision: str = "float32",
    frame_shape: tuple[int, ...] = (6,),
    **config: Any,
) -> Learner:
    return Learner(
        LearnerConfig(**config),
        stack=2,
        frame_shape=frame_shape,
        num_actions=NUM_ACTIONS,
        device=CPU,
        precision=precision,
        rng=np.random.default_rng(seed),
    )


def minibatch(
    seed: int, *, size: int = 8, frame_shape: tuple[int, ...] = (6,)
) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    if len(frame_shape) == 2:
        shape = (size, 2, *frame_shape)
        states = torch.randint(256, shape, dtype=torch.uint8, generator=rng)
    else:
        states = torch.randn(size, 2, *frame_shape, generator=rng)
    actions = torch.randint(NUM_ACTIONS, (size,), generator=rng)
    return states, actions, torch.randn(size, generator=rng)


def copied(learner: Learner, of: str) -> list[Tensor]:
    return [weight.detach().clone() for weight in getattr(learner, of).parameters()]


def rmsprop_of_the_paper(
    weights: np.ndarray, gradients: np.ndarray, *, lr: float, rho: float, epsilon: float
) -> np.ndarray:
    """The formula as it stands in Graves 2013, in float64; gradients (steps, *weights.shape)."""
    mean, square = np.zeros_like(weights), np.zeros_like(weights)
    for gradient in gradients:
        mean = rho * mean + (1 - rho) * gradient
        square = rho * square + (1 - rho) * gradient**2
        weights = weights - lr * gradient / np.sqrt(square - mean**2 + epsilon)
    return weights


def stepped(optimizer: Optimizer, weight: Tensor, gradients: np.ndarray) -> np.ndarray:
    for gradient in gradients:
        weight.grad = torch.from_numpy(gradient).to(weight.dtype)
        optimizer.step()
    return weight.detach().double().numpy()


@pytest.mark.parametrize("epsilon", [0.01, 1e-4])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_rmsprop_is_the_formula_with_epsilon_inside_the_root(epsilon: float, scale: float) -> None:
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(4, 3)), scale * rng.normal(size=(9, 4, 3))
    expected = rmsprop_of_the_paper(start, gradients, lr=0.1, rho=0.95, epsilon=epsilon)

    weight = torch.tensor(start, dtype=torch.float32, requires_grad=True)
    ours = stepped(CenteredRMSProp([weight], learning_rate=0.1, epsilon=epsilon), weight, gradients)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


def test_constant_gradients_leave_no_variance_below_zero() -> None:
    weight = torch.zeros(1000, requires_grad=True)
    gradients = np.tile(np.random.default_rng(0).normal(scale=30, size=1000), (400, 1))
    moved = stepped(CenteredRMSProp([weight], learning_rate=1e-4, epsilon=0.01), weight, gradients)
    assert np.isfinite(moved).all()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_is_torchs(weight_decay: float) -> None:
    rng = torch.Generator().manual_seed(0)
    ours, torchs = (
        [torch.ones(shape, requires_grad=True) for shape in ((3, 5), (7,), ())] for _ in range(2)
    )
    optimizers = (
        Adam(ours, learning_rate=0.1, epsilon=1e-3, weight_decay=weight_decay, decayed=ours),
        torch.optim.AdamW(torchs, lr=0.1, eps=1e-3, weight_decay=weight_decay),
    )
    for number in range(5):
        for one, other in zip(ours, torchs, strict=True):
            one.grad = torch.randn(one.shape, generator=rng)
            other.grad = one.grad.clone()
        # A weight without a gradient stays, and counts no step.
        if number == 2:
            ours[1].grad = torchs[1].grad = None
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(one, other)
    optimizers[0].zero_grad()
    assert [weight.grad for weight in ours] == [None] * 3


def test_learning_does_not_import_torchs_compiler() -> None:
    code = """
        import sys
        from tests.agents.test_learner import learner_of, minibatch
        for optimizer in ("adam", "rmsprop"):
            learner_of(optimizer=optimizer).update(*minibatch(0))
        assert "torch._dynamo" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Errors of 0, 1/2, 1/2 and -11/8 cost 0, 1/8, 1/8 and 11/8 - 1/2 = 7/8.
        ({"loss_reduction": "mean"}, 1.125 / 4),
        ({"loss_reduction": "sum"}, 1.125),
        # The last one costs 1/4 (11/8 - 1/8).
        ({"huber_delta": 0.25, "loss_reduction": "sum"}, 2 * 0.25 * 0.375 + 0.25 * 1.25),
    ],
)
def test_the_huber_loss_by_hand(settings: dict[str, Any], expected: float) -> None:
    learner = learner_of(**settings)
    states, actions, _ = minibatch(0, size=4)
    values = learner.values(states).gather(1, actions[:, None])[:, 0]
    errors = torch.tensor([0.0, 0.5, 0.5, -1.375])
    loss, returned = learner.update(states, actions, values + errors)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(returned, values)
    assert not loss.requires_grad
    assert not returned.requires_grad


@pytest.mark.parametrize("network", ["nature", "dueling"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("frame_shape", [(6,), (36, 36)], ids=["flat", "image"])
def test_an_update_moves_all_weights_and_the_value_towards_its_target(
    network: str, optimizer: str, frame_shape: tuple[int, ...]
) -> None:
    for sign in (1, -1):
        learner = learner_of(network=network, optimizer=optimizer, frame_shape=frame_shape)
        weights = copied(learner, "online")
        states, actions, _ = minibatch(0, size=1, frame_shape=frame_shape)
        value = learner.values(states)[0, actions]
        learner.update(states, actions, value + sign * 3.0)
        assert bool(sign * (learner.values(states)[0, actions] - value) > 0)
        for weight, moved in zip(weights, learner.online.parameters(), strict=True):
            assert not torch.equal(weight, moved)


def test_the_target_network_follows_only_when_its_updates_are_counted() -> None:
    learner = learner_of(target_sync_updates=3)
    held = copied(learner, "online")
    assert all(map(torch.equal, copied(learner, "target"), held))
    for update in range(1, 8):
        learner.update(*minibatch(update))
        learner.count_updates(1)
        assert learner.updates == update
        if update % 3 == 0:
            held = copied(learner, "online")
        assert all(map(torch.equal, copied(learner, "target"), held))
        states = minibatch(0)[0]
        synced = torch.equal(learner.values(states), learner.target_values(states))
        assert synced == (update % 3 == 0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_values_weights_and_gradients_are_float32_in_any_precision(precision: str) -> None:
    learner = learner_of(precision=precision, frame_shape=(36, 36))
    states, actions, targets = minibatch(0, frame_shape=(36, 36))
    loss, values = learner.update(states, actions, targets)
    tensors = [loss, values, learner.values(states), learner.target_values(states)]
    tensors += [*learner.online.parameters(), *learner.target.parameters()]
    dtypes = {tensor.dtype for tensor in tensors}
    dtypes |= {
        weight.grad.dtype for weight in learner.online.parameters() if weight.grad is not None
    }
    assert dtypes == {torch.float32}


def test_bfloat16_is_near_float32_and_is_not_float32() -> None:
    states = minibatch(0, frame_shape=(36, 36))[0]
    whole, half = (
        learner_of(precision=precision, frame_shape=(36, 36)).values(states)
        for precision in ("float32", "bfloat16")
    )
    assert not torch.equal(whole, half)
    torch.testing.assert_close(whole, half, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("network", ["nature", "dueling", "nature@tucker=16,32,32,32,svd=64"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_bfloat16_learns_what_autocast_over_float32_weights_does(
    optimizer: str, network: str
) -> None:
    shape = (36, 36)
    ours, plain = (
        learner_of(precision=precision, frame_shape=shape, network=network, optimizer=optimizer)
        for precision in ("bfloat16", "float32")
    )
    for number in range(4):
        states, actions, targets = minibatch(number, frame_shape=shape)
        ours.update(states, actions, targets)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            values = plain.online(states)
        chosen = values.float().gather(1, actions[:, None])[:, 0]
        plain.optimizer.zero_grad()
        torch.nn.functional.huber_loss(chosen, targets).backward()
        plain.optimizer.step()
    assert same(dict(ours.online.state_dict()), dict(plain.online.state_dict()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("frame_shape", [(6,), (36, 36)], ids=["flat", "image"])
@pytest.mark.parametrize(("updates_before", "average_updates"), [(0, 0), (5, 4)])
def test_a_restored_learner_continues_bit_for_bit(
    tmp_path: Path,
    optimizer: str,
    precision: str,
    frame_shape: tuple[int, ...],
    updates_before: int,
    average_updates: int,
) -> None:
    settings: dict[str, Any] = {
        "optimizer": optimizer,
        "precision": precision,
        "frame_shape": frame_shape,
        "target_sync_updates": 3,
        "average_updates": average_updates,
    }
    learner = learner_of(0, **settings)
    for update in range(updates_before):
        learner.update(*minibatch(update, frame_shape=frame_shape))
        learner.count_updates(1)
    other = learner_of(1, **settings)
    other.load_state_dict(through_disk(learner.state_dict(), tmp_path))
    assert same(other.state_dict(), learner.state_dict())
    for update in range(10, 15):
        one, two = (
            each.update(*minibatch(update, frame_shape=frame_shape)) for each in (learner, other)
        )
        assert all(map(torch.equal, one, two))
        learner.count_updates(1)
        other.count_updates(1)
    assert same(other.state_dict(), learner.state_dict())


def test_the_average_of_the_last_weights_by_hand() -> None:
    # The mean of the first 3, then each time a third of the way to the newest.
    learner = learner_of(average_updates=3, learning_rate=0.1)
    history = []
    for update in range(5):
        learner.update(*minibatch(update))
        learner.count_updates(1)
        history.append(copied(learner, "online"))
    expected = [torch.stack(weights).mean(0) for weights in zip(*history[:3], strict=True)]
    for newest in history[3:]:
        expected = [old + (new - old) / 3 for old, new in zip(expected, newest, strict=True)]
    torch.testing.assert_close(copied(learner, "average"), expected)
    states, _, _ = minibatch(9)
    playing = learner.playing_values(states)
    assert not torch.equal(playing, learner.values(states))
    learner.online.load_state_dict(learner.state_dict()["average"])
    assert torch.equal(playing, learner.values(states))


def test_a_long_average_takes_every_16th_network_and_leaves_the_updates_between_in_groups() -> None:
    learner = learner_of(average_updates=1_600, learning_rate=0.1)
    start = copied(learner, "average")
    taken = []
    for update in range(48):
        assert learner.longest_group == 16 - update % 16
        learner.update(*minibatch(update))
        learner.count_updates(1)
        if update == 14:
            torch.testing.assert_close(copied(learner, "average"), start)
        if update % 16 == 15:
            taken.append(copied(learner, "online"))
    mean = [torch.stack(weights).mean(0) for weights in zip(*taken, strict=True)]
    torch.testing.assert_close(copied(learner, "average"), mean)


def test_a_target_network_by_averaging_by_hand() -> None:
    learner = learner_of(target_average=0.25, learning_rate=0.1, target_sync_updates=2)
    expected = copied(learner, "target")
    for update in range(5):
        learner.update(*minibatch(update))
        learner.count_updates(1)
        online = copied(learner, "online")
        expected = [t + 0.25 * (o - t) for t, o in zip(expected, online, strict=True)]
        for weight, other in zip(copied(learner, "target"), expected, strict=True):
            torch.testing.assert_close(weight, other)
    assert learner.longest_group == 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_reset_draws_the_head_anew_and_the_convolutions_a_fifth(precision: str) -> None:
    shape = (36, 36)
    settings: dict[str, Any] = {
        "frame_shape": shape,
        "reset_updates": 3,
        "target_sync_updates": 100,
        "precision": precision,
        "learning_rate": 0.01,
    }
    learner, again = (learner_of(**settings) for _ in range(2))
    for number in range(3):
        assert learner.longest_group == 3 - number
        for each in (learner, again):
            each.update(*minibatch(number, frame_shape=shape))
        if number == 2:
            before = dict(learner.online.state_dict())
            before = {name: weight.clone() for name, weight in before.items()}
        for each in (learner, again):
            each.count_updates(1)
    assert same(learner.state_dict(), again.state_dict())
    for name, weight in learner.online.state_dict().items():
        if "bias" in name:
            # New biases are 0.1, those of the output layer a tenth.
            fresh = 0.01 if name == "1.2.bias" else 0.1
            share = 1.0 if name.startswith("1.") else 0.2
            expected = before[name] + share * (fresh - before[name])
            torch.testing.assert_close(weight, expected)
        elif name.startswith("1."):
            correlation = torch.corrcoef(torch.stack([weight.ravel(), before[name].ravel()]))
            assert abs(float(correlation[0, 1])) < 0.2
    assert same(dict(learner.online.state_dict()), dict(learner.target.state_dict()))
    assert not any(
        slot.any() for slots in learner.optimizer.state.values() for slot in slots.values()
    )
    states = minibatch(9, frame_shape=shape)[0]
    assert torch.equal(learner.values(states), learner.target_values(states))


def test_averaged_weights_start_again_at_a_reset() -> None:
    learner = learner_of(average_updates=3, reset_updates=4, learning_rate=0.1)
    since_reset: list[list[Tensor]] = []
    for number in range(11):
        learner.update(*minibatch(number))
        learner.count_updates(1)
        online = copied(learner, "online")
        if learner.updates % 4 == 0:
            since_reset = []
            expected = online
        else:
            since_reset.append(online)
            expected = [sum(each) / len(since_reset) for each in zip(*since_reset, strict=True)]
        for weight, other in zip(copied(learner, "average"), expected, strict=True):
            torch.testing.assert_close(weight, other)


@pytest.mark.parametrize("noisy", [False, True])
def test_weight_decay_shrinks_weights_but_no_biases_and_no_noise(noisy: bool) -> None:
    # Without errors there are no gradients: only the decay moves weights.
    learner = learner_of(weight_decay=0.5, learning_rate=0.1, noisy=noisy)
    before = copied(learner, "online")
    states, actions, _ = minibatch(0)
    values = learner.values(states).gather(1, actions[:, None])[:, 0]
    learner.update(states, actions, values)
    decays = [
        name.endswith("weight") and "noise" not in name
        for name, _ in learner.online.named_parameters()
    ]
    for weight, old, decay in zip(copied(learner, "online"), before, decays, strict=True):
        torch.testing.assert_close(weight, old * (1 - 0.1 * 0.5) if decay else old)


@pytest.mark.parametrize("quantiles", [0, 3])
def test_bfloat16_tells_values_apart_that_it_cannot_represent(quantiles: int) -> None:
    learner = learner_of(precision="bfloat16", quantiles=quantiles)
    expected = 6 + 0.001 * torch.arange(NUM_ACTIONS)
    with torch.no_grad():
        weight, bias = list(learner.online.parameters())[-2:]
        weight.zero_()
        bias.copy_(expected.repeat_interleave(max(1, quantiles)))
    learner.sync_target()
    states = minibatch(0)[0]
    for values in (learner.values(states), learner.target_values(states)):
        torch.testing.assert_close(values, expected.expand(len(states), -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("network", ["nature", "dueling"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_quantiles_are_trained_towards_theirs(network: str, precision: str) -> None:
    shape = (36, 36)
    # Nearly no quadratic part: with it they are drawn towards the mean.
    learner = learner_of(
        quantiles=5,
        network=network,
        learning_rate=1e-3,
        huber_delta=0.02,
        frame_shape=shape,
        precision=precision,
    )
    states, actions, _ = minibatch(0, frame_shape=shape)
    assert learner.values(states).shape == (8, NUM_ACTIONS)
    quantiles = learner.target_quantiles(states)
    assert quantiles.shape == (5, 8, NUM_ACTIONS)
    torch.testing.assert_close(
        quantiles.mean(0), learner.target_values(states), atol=1e-2, rtol=1e-2
    )
    targets = torch.linspace(-1, 1, 5)[:, None] + torch.linspace(-0.5, 0.5, 8)
    for _ in range(400):
        loss, predicted = learner.update(states, actions, targets)
    assert predicted.shape == targets.shape
    torch.testing.assert_close(predicted, targets, atol=0.25, rtol=0)
    assert loss.shape == ()
