"""Test the sampler with a fake clock: rounds, order, warm-up, the limit `cap_s`, and parts."""

import time
from contextlib import contextmanager

import pytest

from seerbench.measure.sampler import Candidate, Parts, Timing, sample, timer_for


class FakeClock:
    """A clock that advances only while a timed call runs, by `costs` seconds per (method, stage)."""

    def __init__(self, costs):
        self.now, self.costs, self.calls = 0.0, costs, []

    def __call__(self):
        return self.now

    def timer(self, call):
        started = self.now
        call()
        return (self.now - started) * 1e3

    def contenders(self):
        names = dict.fromkeys(name for name, _ in self.costs)
        return {
            name: Candidate({stage: self._call(name, stage) for one, stage in self.costs if one == name})
            for name in names
        }

    def _call(self, name, stage):
        def call():
            self.calls.append((name, stage))
            self.now += self.costs[name, stage]

        return call

    def sample(self, **timing):
        return sample(self.contenders(), Timing(**timing), self.timer, self)


COSTS = {("a", "plan"): 0.1, ("a", "total"): 0.4, ("b", "total"): 0.2, ("c", "total"): 0.3}


def test_every_method_once_a_round_and_what_it_took():
    samples = FakeClock(COSTS).sample(rounds=12, cap_s=1e9)
    for turn in range(12):
        mine = [one for one in samples if one.round == turn]
        assert sorted((one.method, one.stage) for one in mine) == sorted(COSTS)
        assert sorted({one.order for one in mine}) == [0, 1, 2]
        assert len({(one.method, one.order) for one in mine}) == 3  # a method's stages share its place
    assert all(one.ms == pytest.approx(COSTS[one.method, one.stage] * 1e3) for one in samples)


def test_warm_up_comes_first_and_is_not_sampled():
    clock = FakeClock(COSTS)
    samples = clock.sample(rounds=10, warmup=2)
    assert clock.calls[:8] == [*[("a", "plan"), ("a", "total")] * 2, *[("b", "total")] * 2, *[("c", "total")] * 2]
    assert len(samples) == len(clock.calls) - 8 == 10 * 4


def test_order_is_shuffled_and_follows_the_seed():
    def orders(seed):
        samples = FakeClock(COSTS).sample(rounds=30, cap_s=1e9, seed=seed)
        return [(one.round, one.method, one.order) for one in samples]

    assert orders(3) == orders(3) != orders(4)
    first = [method for _, method, order in orders(3) if order == 0]
    assert set(first) == {"a", "b", "c"}


def test_at_least_ten_rounds_when_slow():
    samples = FakeClock({("slow", "total"): 1_000.0}).sample(cap_s=5.0)
    assert [one.round for one in samples] == list(range(10))


def test_the_cap_ends_the_cell_after_ten_rounds():
    samples = FakeClock({("a", "total"): 1.0}).sample(cap_s=15.0, warmup=5)
    assert len(samples) == 15  # the five seconds of warm-up do not count
    assert len(FakeClock({("a", "total"): 1.0}).sample(rounds=12, cap_s=15.0)) == 12


def test_a_method_is_entered_around_its_own_turns_only():
    inside, seen = [], []

    @contextmanager
    def enter():
        inside.append("x")
        yield
        inside.pop()

    contenders = {
        "entered": Candidate({"total": lambda: seen.append(len(inside))}, enter),
        "plain": Candidate({"total": lambda: seen.append(len(inside) + 10)}),
    }
    sample(contenders, Timing(rounds=10), timer_for("cpu"))
    assert set(seen) == {1, 10}
    assert not inside


def test_cpu_timer_tells_milliseconds():
    assert 20 <= timer_for("cpu")(lambda: time.sleep(0.02)) < 200


def test_parts_are_summed_by_name_and_forgotten():
    parts = Parts("cpu")
    for _ in range(2):
        with parts.part("plan"):
            time.sleep(0.002)
    with parts.part("attend"):
        pass
    took = parts.take()
    assert took["plan"] >= 4.0 > took["attend"] >= 0.0
    assert parts.take() == {}


def test_parts_of_a_call_become_samples_of_its_round_and_those_of_the_warm_up_do_not():
    parts = Parts("cpu")

    def call() -> None:
        with parts.part("inner"):
            pass

    contender = Candidate({"whole": call}, parts=parts.take)
    samples = sample({"m": contender}, Timing(rounds=2, warmup=3), lambda run: run() or 1.0)
    assert [(one.stage, one.round) for one in samples] == [("whole", 0), ("inner", 0), ("whole", 1), ("inner", 1)]
