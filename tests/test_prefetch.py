"""Batches ahead of the loop: the same steps in the same order, errors where they happen, no thread left."""

import threading
import time

import pytest
import torch

from omni.base.errors import UserError
from omni.data.batch import tensors_of
from omni.data.loader import Step
from omni.data.packing import pack
from omni.train.prefetch import AHEAD, THREAD, prefetch

CPU = torch.device("cpu")


def step(number: int) -> Step:
    return Step([pack([([number, 5, 6], [5, 6, -100])], 0)], torch.tensor([[1, 2]]), [])


def threads() -> int:
    return sum(thread.name == THREAD for thread in threading.enumerate())


@pytest.mark.parametrize("threaded", [True, False])
def test_steps_come_in_order_as_they_were_prepared(threaded):
    prepared = []

    def prepare(batch):
        prepared.append(threading.current_thread().name)
        return pack([([int(batch.ids[0]) + 100, 5], [5, -100])], 0)
    found = [int(step.batches[0].ids[0]) for step in
             prefetch(map(step, range(20)), CPU, prepare, threaded)]
    assert found == [100 + number for number in range(20)]
    assert len(prepared) == 20 and ({*prepared} == {THREAD}) == threaded and not threads()


def test_the_thread_is_ahead_but_no_further_than_it_may_be():
    made = []

    def steps():
        for number in range(50):
            made.append(number)
            yield step(number)
    ahead = prefetch(steps(), CPU, threaded=True)
    next(ahead)
    deadline = time.time() + 10
    while len(made) < AHEAD and time.time() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert AHEAD <= len(made) <= AHEAD + 3
    ahead.close()
    assert not threads()


def test_an_error_is_raised_in_the_loop_after_the_steps_before_it():
    def steps():
        yield step(1)
        raise UserError("a medium is gone")
    found = []
    with pytest.raises(UserError, match="a medium is gone"):
        for taken in prefetch(steps(), CPU, threaded=True):
            found.append(int(taken.batches[0].ids[0]))
    assert found == [1] and not threads()


def test_every_tensor_of_a_batch_is_known(toy, mixed):
    batch = toy.collator(toy.model())(mixed)
    fields = {name for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    layout = {name for name, value in vars(batch.layout).items() if isinstance(value, torch.Tensor)}
    assert len(tensors_of(batch)) == len(fields) + len(layout) > 8
