"""Texts to be scored, and ways to ask for their scores."""

from __future__ import annotations

import threading
from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from edge_prm.encode import Encoder
from edge_prm.trajectory import Trajectory

PROMPT = "How many eggs does she sell at the market?"
STEPS = ["Janet has 16 eggs a day.", "She eats 3 of them.", "16 - 3 = 13", "The answer is 13."]
WORDS = st.lists(st.sampled_from(["16 - 3 = 13", "?", "Janet", " ", "\n", ".", "é", "😀", "1"]), min_size=1, max_size=4)
STEP = WORDS.map("".join).filter(lambda text: text.strip() != "")
repeated = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the PRM holds nothing but a cache


def tokens(encoder: Encoder, prompt: str, steps: object) -> int:
    return len(encoder.encode(Trajectory.of(prompt, steps)).ids)  # type: ignore[arg-type]


def run_threads(work: Callable[[int], None], count: int) -> None:
    errors: list[BaseException] = []

    def guarded(worker: int) -> None:
        try:
            work(worker)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(worker,)) for worker in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
