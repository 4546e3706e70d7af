"""Compiled integer learners against plain PyTorch loops of the same arithmetic at batch 1.

Regression on a 3-10-10-1 network, 16 bits of which 12 are fraction, one thread. Both sides learn
from the same examples, one by one. Rounds of both in turn, in seconds of processor time; the median
of their quotients, and the best round of each. What a 24-bit device and PyTorch's float32 make of
the same 2000 examples is compared too, so that the race is one of equals.

python benchmarks/bench_embedded.py accuracy     # the tables of docs/learning/embedded.md
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP, WithNoise, copy_network
from stillfit.models.task import Regression
from stillfit.models.training import Prepared, Schedule, fit
from stillfit.streams.store import Keeping
from stillfit.updaters.embedded import (
    EmbeddedDFA,
    EmbeddedLearner,
    EmbeddedLMS,
    EmbeddedRLS,
    EmbeddedSGD,
    EmbeddedSPSA,
    Exemplars,
    Format,
    kernels,
)

Row = tuple[str, float, str]
Loop = Callable[[nn.Sequential, Tensor, Tensor], None]
TASK = Regression(features=("x",))
RATE = 2.0**-7
FEW, MANY = 250, 60_000  # examples per round of the plain loop and of ours


def linears(network: nn.Sequential) -> list[nn.Linear]:
    return [part for part in network if isinstance(part, nn.Linear)]


def by_gradient(network: nn.Sequential, x: Tensor, y: Tensor) -> None:
    optimiser = torch.optim.SGD(network.parameters(), lr=RATE)
    for row in range(len(x)):
        optimiser.zero_grad()
        loss = 0.5 * (network(x[row : row + 1])[0, 0] - y[row]) ** 2
        loss.backward()
        optimiser.step()


def by_last_layer(network: nn.Sequential, x: Tensor, y: Tensor) -> None:
    head = linears(network)[-1]
    with torch.no_grad():
        for row in range(len(x)):
            phi = network[:-1](x[row : row + 1])[0]
            error = (head.weight @ phi + head.bias)[0] - y[row]
            head.weight -= RATE * error * phi
            head.bias -= RATE * error


def by_feedback(network: nn.Sequential, x: Tensor, y: Tensor) -> None:
    layers = linears(network)
    signs = [torch.ones(layer.out_features) for layer in layers[:-1]]
    with torch.no_grad():
        for row in range(len(x)):
            values = [x[row]]
            for layer in layers[:-1]:
                values.append(torch.relu(layer.weight @ values[-1] + layer.bias))
            error = layers[-1].weight @ values[-1] + layers[-1].bias - y[row]
            for depth, layer in enumerate(layers):
                down = error
                if depth < len(signs):
                    down = signs[depth] * error * (values[depth + 1] > 0)
                layer.weight -= RATE * torch.outer(down, values[depth])
                layer.bias -= RATE * down


def by_perturbation(network: nn.Sequential, x: Tensor, y: Tensor) -> None:
    step = 2.0**-5
    with torch.no_grad():
        flat = nn.utils.parameters_to_vector(network.parameters())
        for row in range(len(x)):
            signs = torch.randint(0, 2, flat.shape) * 2.0 - 1
            losses = []
            for way in (step, -step):
                nn.utils.vector_to_parameters(flat + way * signs, network.parameters())
                losses.append(0.5 * (network(x[row : row + 1])[0, 0] - y[row]) ** 2)
            flat -= 2.0**-12 * (losses[0] - losses[1]) / (2 * step) * signs
        nn.utils.vector_to_parameters(flat, network.parameters())


def by_least_squares(network: nn.Sequential, x: Tensor, y: Tensor) -> None:
    head = linears(network)[-1]
    covariance, one = torch.eye(head.in_features + 1), torch.ones(1)
    with torch.no_grad():
        for row in range(len(x)):
            phi = torch.cat([network[:-1](x[row : row + 1])[0], one])
            u = covariance @ phi
            gain = u / (0.999 + phi @ u)
            error = (head.weight @ phi[:-1] + head.bias)[0] - y[row]
            head.weight -= gain[:-1] * error
            head.bias -= gain[-1] * error
            covariance -= torch.outer(gain, u)
            covariance /= 0.999


LEARNERS: tuple[tuple[str, EmbeddedLearner, Loop], ...] = (
    ("SGD", EmbeddedSGD(rate=RATE), by_gradient),
    ("SGD, rounded half up", EmbeddedSGD(rate=RATE, numbers=Format(rounding="half-up")),
     by_gradient),
    ("LMS", EmbeddedLMS(rate=RATE), by_last_layer),
    ("feedback alignment", EmbeddedDFA(rate=RATE), by_feedback),
    ("SPSA", EmbeddedSPSA(rate=2.0**-12), by_perturbation),
    ("least squares", EmbeddedRLS(), by_least_squares),
)  # fmt: skip


def serving() -> Model:
    torch.manual_seed(0)
    network = WithNoise(MLP(3, [10, 10], 1)).eval()
    return Model(network, TASK, Architecture("mlp"))


def table(n: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    return x, (np.sin(2 * x[:, 0]) + 0.5 * x[:, 1] * x[:, 2]).astype(np.float32)


def plain(model: Model) -> nn.Sequential:
    """The layers alone, as one would write them for a race."""
    inner = model.network.network
    assert isinstance(inner, MLP)
    return nn.Sequential(*list(copy_network(inner).layers)[1:])


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def race(learner: EmbeddedLearner, loop: Loop, rounds: int = 5) -> tuple[float, float, float]:
    """Quotient of steps per second, ours and theirs (each its best round)."""
    model = serving()
    device, plan = learner.switched_on(model, np.random.default_rng(0))
    network = plain(model)
    x, y = table(MANY)
    xs, ts = learner.numbers.integers(x), learner.numbers.integers(y).astype(np.int32)
    some = torch.from_numpy(x[:FEW]), torch.from_numpy(y[:FEW])
    kernels.learn(device, plan, xs[:10], ts[:10])
    loop(network, some[0][:10], some[1][:10])
    quotients, ours, theirs = [], [], []
    for _ in range(rounds):
        theirs.append(FEW / seconds(lambda: loop(network, *some)))
        ours.append(MANY / seconds(lambda: kernels.learn(device, plan, xs, ts)))
        quotients.append(ours[-1] / theirs[-1])
    return median(quotients), max(ours), max(theirs)


def distance() -> float:
    """Largest difference of a weight after 2000 examples: 24 bits, 16 of them fraction, float32."""
    model = serving()
    learner = EmbeddedSGD(rate=RATE, numbers=Format(width=24, fraction=16, rounding="half-up"))
    device, plan = learner.switched_on(model, np.random.default_rng(0))
    x, y = table(2000)
    kernels.learn(
        device, plan, learner.numbers.integers(x), learner.numbers.integers(y).astype(np.int32)
    )
    network = plain(model)
    by_gradient(network, torch.from_numpy(x), torch.from_numpy(y))
    flat = np.concatenate(
        [
            np.concatenate([p.weight.detach(), p.bias.detach()[:, None]], 1).reshape(-1)
            for p in linears(network)
        ]
    )
    return float(np.abs(learner.numbers.floats(device.weights) - flat).max())


def whole_update(learner: EmbeddedLearner, n: int = 100_000) -> float:
    """Examples per second of `update`: reading, quantising, learning, the candidate."""
    model = serving()
    x, y = table(n)
    ids = np.arange(n, dtype=np.int64)
    events = Examples(ids, {"x": x}, {"y": y}, np.zeros(n), np.full(n, "all"))
    memory = Keeping(budget_bytes=10**6, held_out=0.0).empty().training
    budget = Budget()

    def work() -> None:
        found = learner.update(model, {}, events, memory, budget=budget, rng=rng)
        assert isinstance(found, Candidate)

    rng = np.random.default_rng(0)
    work()
    return n / min(seconds(work) for _ in range(3))


def run() -> list[Row]:
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name, learner, loop in LEARNERS:
        quotient, ours, theirs = race(learner, loop)
        account = learner.account(serving())
        rows += [
            (f"3-10-10-1, {name}: steps", ours / 1e6, "M/s"),
            (f"3-10-10-1, {name}: plain loop, batch 1", theirs / 1e3, "k/s"),
            (f"3-10-10-1, {name}: faster than the loop", quotient, "x"),
            (f"3-10-10-1, {name}: RAM", account.ram_bytes, "bytes"),
            (f"3-10-10-1, {name}: multiplications per example", account.macs, ""),
        ]
    kept = EmbeddedSGD(rate=RATE, exemplars=Exemplars(capacity=1000))
    rows += [
        ("3-10-10-1, SGD: a whole update of 100 000 examples", whole_update(LEARNERS[0][1]) / 1e6,
         "M examples/s"),
        ("3-10-10-1, SGD with 1000 kept: the same", whole_update(kept) / 1e6, "M examples/s"),
        ("3-10-10-1, SGD with 1000 kept: RAM", kept.account(serving()).ram_bytes, "bytes"),
        ("largest difference to float32 PyTorch, 24 bits, 2000 steps", distance(), ""),
    ]  # fmt: skip
    return rows


# -- accuracy -----------------------------------------------------------------------------------


def shifted(n: int, shift: float, seed: int) -> Examples:
    """y = sin(2 x0 + shift) + x1 x2 / 2 + noise of 0.1, standard normal x."""
    rng = np.random.default_rng([seed, n, round(10 * shift)])
    x = rng.normal(size=(n, 3))
    y = np.sin(2 * x[:, 0] + shift) + 0.5 * x[:, 1] * x[:, 2] + 0.1 * rng.normal(size=n)
    ids = np.arange(n, dtype=np.int64)
    return Examples(ids, {"x": x}, {"y": y}, np.zeros(n), np.full(n, "all"))


def trained(seed: int) -> Model:
    """A network 3-10-10-2 (mean and log-variance) that was trained well at shift 0."""
    old = shifted(4000, 0.0, seed)
    network = TASK.fresh(MLP(3, [10, 10]), old, seed)
    model = Model(network, TASK, Architecture("mlp"))
    schedule = Schedule(steps=600, batch=200, rate=0.01)
    fit(model, Prepared.of(model, old), schedule, np.random.default_rng(seed))
    return model


def variants() -> Iterator[tuple[str, EmbeddedLearner]]:
    sgd = EmbeddedSGD(rate=2.0**-8)
    for width, fraction in ((24, 16), (16, 12), (14, 10), (12, 8), (10, 6)):
        for rounding in ("half-up", "nearest-even", "stochastic"):
            numbers = Format(width=width, fraction=fraction, rounding=rounding)
            yield f"SGD, {fraction} fraction bits, {rounding}", replace(sgd, numbers=numbers)
    yield "SGD, 200 kept in 8 bits", replace(sgd, exemplars=Exemplars(capacity=200))
    yield "SGD, last layer (LMS)", EmbeddedLMS(rate=2.0**-8)
    for feedback in ("serving", "random", "sign"):
        yield f"feedback alignment, {feedback}", EmbeddedDFA(rate=2.0**-8, feedback=feedback)
    for rounding in ("half-up", "stochastic"):
        yield f"SPSA, {rounding}", EmbeddedSPSA(numbers=Format(rounding=rounding))
    for forgetting in (1.0, 0.999):
        for bits in (12, 16, 20, 24, 26):
            yield (
                f"least squares, forgetting {forgetting:g}, {bits} covariance bits",
                EmbeddedRLS(forgetting=forgetting, covariance_bits=bits),
            )
    for rounding in ("half-up", "stochastic"):
        numbers = Format(width=12, fraction=8, rounding=rounding)
        yield f"least squares, 8 fraction bits, {rounding}", EmbeddedRLS(numbers=numbers)


def accuracy(seeds: int = 5) -> None:
    """Mean absolute errors after one pass over 20 000 examples of another condition."""
    torch.set_num_threads(1)
    memory = Keeping(budget_bytes=10**6, held_out=0.0).empty().training
    models = [trained(seed) for seed in range(seeds)]
    new, old = shifted(4000, 0.8, 900), shifted(4001, 0.0, 900)

    def errors(model: Model) -> list[float]:
        return [float(model.errors(test)["error"].mean()) for test in (new, old)]

    def line(name: str, found: list[list[float]], rest: str) -> None:
        mean = np.mean(found, 0)
        spread = np.std(found, 0, ddof=1) / np.sqrt(len(found))
        print(f"| {name} | {mean[0]:.3f} +- {spread[0]:.3f} | {mean[1]:.3f} | {rest} |", flush=True)

    line("serving", [errors(model) for model in models], "| ")
    for name, learner in variants():
        found, restarts, made = [], 0, None
        for seed, model in enumerate(models):
            made = learner.update(
                model, {}, shifted(20_000, 0.8, seed), memory, budget=Budget(),
                rng=np.random.default_rng(seed),
            )  # fmt: skip
            assert isinstance(made, Candidate), made
            found.append(errors(made.model))
            restarts += int(made.learner["guards"][1]) if "guards" in made.learner else 0
        assert isinstance(made, Candidate)
        extra = f", {restarts} restarts" if restarts else ""
        line(name, found, f"{made.cost.ram_bytes} | {made.cost.macs_per_example}{extra}")


if __name__ == "__main__":
    if sys.argv[1:] == ["accuracy"]:
        accuracy()
    else:
        for label, value, unit in run():
            print(f"{label:62s} {value:14,.5g} {unit}")
