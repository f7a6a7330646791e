# ruff: noqa: B007, B023, E501
"""The barriers of the `stream` variants played through in random orders: no deadlock, and every read finds its tile.

    python trial_fwd/protocol.py

A model, without a GPU: producer and consumers are generators that mirror `_produce` and `_consume` line by line, a wait
names a barrier and the parity it waits for as the hardware does, TMA copies land after a random delay.
"""

from __future__ import annotations

import random


class Barrier:
    """mbarrier: `wait(parity)` passes while the current phase's parity differs from it, as try_wait.parity does."""

    def __init__(self, count):
        self.count, self.pending, self.phase = count, count, 0

    def arrive(self):
        self.pending -= 1
        assert self.pending >= 0
        if self.pending == 0:
            self.pending, self.phase = self.count, self.phase + 1

    def passes(self, parity):
        return (self.phase & 1) != parity


def advance(slot, phase, stages):
    slot += 1
    return (0, phase ^ 1) if slot == stages else (slot, phase)


def play(counts, programs_items, stages, consumers, rnd):
    """One program with items `programs_items` (a list of tile counts, 0 for an empty row)."""
    q_full, q_empty = ([Barrier(1) for _ in range(2 * consumers)] for _ in range(2))
    k_full, v_full = [Barrier(1) for _ in range(stages)], [Barrier(1) for _ in range(stages - 1)]
    used = [Barrier(consumers) for _ in range(stages)]
    work_full, work_empty = [Barrier(1) for _ in range(2)], [Barrier(consumers) for _ in range(2)]
    k, v, q, work = [None] * stages, [None] * (stages - 1), [None] * (2 * consumers), [None] * 2
    flights = []  # TMA copies under way
    items = len(programs_items)

    def copy(where, slot, what, barrier):
        where[slot] = ("in flight", what)
        flights.append((where, slot, what, barrier))

    def produce():
        slot, phase, v_slot, turn = 0, 1, 0, 0
        for item, count in enumerate(programs_items):
            yield work_empty[turn & 1], ((turn // 2) & 1) ^ 1
            work[turn & 1] = (item, max(count, 1))
            work_full[turn & 1].arrive()
            count, tile, fresh = max(count, 1), 0, True
            while count > 0:
                yield used[slot], phase
                copy(k, slot, (item, tile), k_full[slot])
                slot, phase = advance(slot, phase, stages)
                if fresh:
                    for part in range(consumers):
                        at = (turn & 1) * consumers + part
                        yield q_empty[at], ((turn // 2) & 1) ^ 1
                        copy(q, at, item, q_full[at])
                    fresh = False
                else:
                    yield used[slot], phase
                    copy(v, v_slot, (item, tile - 1), v_full[v_slot])
                    v_slot = 0 if v_slot == stages - 2 else v_slot + 1
                tile += 1
                count -= 1
            ahead, ahead_phase = advance(slot, phase, stages)
            yield used[ahead], ahead_phase
            copy(v, v_slot, (item, tile - 1), v_full[v_slot])
            v_slot = 0 if v_slot == stages - 2 else v_slot + 1
            turn += 1
        yield work_empty[turn & 1], ((turn // 2) & 1) ^ 1
        work[turn & 1] = (items, 0)
        work_full[turn & 1].arrive()

    def consume(consumer, log):
        k_slot, k_phase, v_slot, v_phase, turn = 0, 0, 0, 0, 1
        yield work_full[0], 0
        item, count = work[0]
        yield None
        work_empty[0].arrive()
        yield q_full[consumer], 0
        yield k_full[0], 0
        tile = 0
        assert q[consumer] == item
        assert k[0] == (item, 0)
        yield None
        used[0].arrive()
        if count > 1:
            k_slot, k_phase = advance(k_slot, k_phase, stages)
            yield k_full[k_slot], k_phase
        while item < items:
            place = ((turn & 1) ^ 1) * consumers + consumer
            while count > 1:
                count -= 1
                tile += 1
                yield v_full[v_slot], v_phase
                for _ in range(2):  # at the beginning and at the end of the products
                    assert q[place] == item
                    assert k[k_slot] == (item, tile)
                    assert v[v_slot] == (item, tile - 1)
                    yield None
                log.append((item, tile - 1))
                done = k_slot
                if count > 1:
                    k_slot, k_phase = advance(k_slot, k_phase, stages)
                yield k_full[k_slot], k_phase
                assert q[place] == item
                assert k[done] == (item, tile)
                assert v[v_slot] == (item, tile - 1)
                used[done].arrive()
                v_slot, v_phase = advance(v_slot, v_phase, stages - 1)
            k_slot, k_phase = advance(k_slot, k_phase, stages)
            slot = turn & 1
            yield work_full[slot], (turn // 2) & 1
            old, old_tile = item, tile
            item, count = work[slot]
            tile = 0
            yield None
            work_empty[slot].arrive()
            if item < items:
                yield q_full[slot * consumers + consumer], (turn // 2) & 1
                yield k_full[k_slot], k_phase
            else:
                count = 0
            yield v_full[v_slot], v_phase
            done = k_slot

            def right(old=old, old_tile=old_tile, done=done, slot=slot):
                assert v[v_slot] == (old, old_tile)
                if item < items:
                    assert k[done] == (item, 0)
                    assert q[slot * consumers + consumer] == item

            right()
            yield None
            if count > 1:
                k_slot, k_phase = advance(k_slot, k_phase, stages)
                yield k_full[k_slot], k_phase
            right()
            log.append((old, old_tile))
            used[done].arrive()
            q_empty[place].arrive()
            v_slot, v_phase = advance(v_slot, v_phase, stages - 1)
            turn += 1

    logs = [[] for _ in range(consumers)]
    players = [produce(), *(consume(c, logs[c]) for c in range(consumers))]
    weights = [rnd.choice([0.05, 1, 20]) for _ in players] + [rnd.choice([0.05, 1, 20])]
    waits = {p: next(p, "over") for p in players}
    while any(w != "over" for w in waits.values()):
        ready = [p for p in players if waits[p] != "over" and (waits[p] is None or waits[p][0].passes(waits[p][1]))]
        choices = ready + (["land"] if flights else [])
        assert choices, f"deadlock: {programs_items}"
        odds = [weights[players.index(c)] if c != "land" else weights[-1] for c in choices]
        chosen = rnd.choices(choices, odds)[0]
        if chosen == "land":
            where, slot, what, barrier = flights.pop(rnd.randrange(len(flights)))
            where[slot] = what
            barrier.arrive()
        else:
            waits[chosen] = next(chosen, "over")
    wanted = [(i, t) for i, c in enumerate(programs_items) for t in range(max(c, 1))]
    assert all(log == wanted for log in logs)
    assert not flights


def main():
    rnd = random.Random(0)
    for trial in range(6000):
        most = rnd.choice([0, 1, 2, 3, 4, 9])
        items = [rnd.randint(0, most) for _ in range(rnd.randint(1, 9))]
        play(None, items, rnd.choice([3, 5]), rnd.choice([1, 2]), rnd)
    print(trial + 1, "plays: no deadlock, every read found its tile")


if __name__ == "__main__":
    main()
