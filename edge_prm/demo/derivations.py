"""Arithmetic derivations, right and wrong: the demo's training data and its examples at run time.

Standard library only, and the same seed gives the same derivations on every machine. Every number lies within
0..20, so that a model of a megabyte or two can learn the arithmetic exactly.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

LARGEST = 20
_NUMBER = re.compile(r"\d+")
_EQUATION = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")
_ASKED = ("What is {}?", "Compute {}.", "Find the value of {}.")
_ANSWERED = ("The answer is {}.", "Answer: {}")
_ORDERED = {"+": "add {}", "-": "subtract {}", "*": "multiply by {}"}


@dataclass(frozen=True)
class Derivation:
    """A problem, its steps in order, and the index of the first wrong step (None when all are right)."""

    problem: str
    steps: tuple[str, ...]
    first_wrong: int | None

    @property
    def labels(self) -> tuple[bool, ...]:
        """For each step, whether it and all steps before it are right: what a perfect judge would say."""
        return tuple(self.first_wrong is None or index < self.first_wrong for index in range(len(self.steps)))


class _Equation(NamedTuple):
    left: int
    operator: str
    right: int

    @classmethod
    def parse(cls, match: re.Match[str]) -> "_Equation":
        return cls(int(match[1]), match[2], int(match[3]))

    @property
    def result(self) -> int:
        if self.operator == "+":
            return self.left + self.right
        return self.left - self.right if self.operator == "-" else self.left * self.right

    @property
    def in_range(self) -> bool:
        return all(0 <= number <= LARGEST for number in (self.left, self.right, self.result))

    def written(self, result: int) -> str:
        return f"{self.left} {self.operator} {self.right} = {result}"


def generate(seed: int, count: int, mistake_rate: float = 0.5) -> Iterator[Derivation]:
    """Yield `count` derivations of 2 to 5 steps; each has a planted mistake with probability `mistake_rate`."""
    rng = random.Random(seed)
    for _ in range(count):
        derivation = _right_derivation(rng)
        yield plant_mistake(derivation, rng) if rng.random() < mistake_rate else derivation


def plant_mistake(derivation: Derivation, rng: random.Random) -> Derivation:
    """Make one step of a right derivation wrong; the steps after it follow from the wrong value.

    The mistake is a wrong result, a wrongly copied number or a wrong operator. ValueError when the derivation has a
    mistake already, or no place for one: its steps must hold equations and numbers as `generate` writes them.
    """
    if derivation.first_wrong is not None:
        raise ValueError(f"step {derivation.first_wrong} is already wrong; plant a mistake in a right derivation")
    for _ in range(1000 if derivation.steps else 0):
        at = rng.randrange(len(derivation.steps))
        steps = _with_mistake(derivation.steps, at, rng)
        if steps is not None:
            return replace(derivation, steps=steps, first_wrong=at)
    raise ValueError(f"no step of {derivation.problem!r} has room for a mistake; write steps such as '3 + 4 = 7'")


def _with_mistake(steps: tuple[str, ...], at: int, rng: random.Random) -> tuple[str, ...] | None:
    """Return the steps with a mistake at index `at`, or None when the mistake drawn does not fit there."""
    changed = list(steps)
    match = _EQUATION.search(steps[at])
    if match is None:  # the step that gives the answer
        changed[at] = _NUMBER.sub(lambda number: str(_other_number(int(number[0]), rng)), steps[at])
        return None if changed[at] == steps[at] else tuple(changed)
    right = _Equation.parse(match)
    wrong, value = _mistaken(right, rng)
    if not wrong.in_range or value == right.result:
        return None
    changed[at] = _EQUATION.sub(wrong.written(value), steps[at])
    for index in range(at + 1, len(steps)):
        match = _EQUATION.search(steps[index])
        if match is None:
            changed[index] = _NUMBER.sub(str(value), steps[index])
            continue
        wrong = _Equation.parse(match)._replace(left=value)
        if not wrong.in_range:
            return None
        value = wrong.result
        changed[index] = _EQUATION.sub(wrong.written(value), steps[index])
    return tuple(changed)


def _mistaken(right: _Equation, rng: random.Random) -> tuple[_Equation, int]:
    """Return an equation to write instead of `right` and the result to write after it."""
    kind = rng.choice(("result", "result", "left", "right", "operator"))
    if kind == "result":
        return right, _other_number(right.result, rng)
    if kind == "left":
        wrong = right._replace(left=_other_number(right.left, rng))
    elif kind == "right":
        wrong = right._replace(right=_other_number(right.right, rng))
    else:
        wrong = right._replace(operator=rng.choice("+-*".replace(right.operator, "")))
    return wrong, wrong.result


def _other_number(number: int, rng: random.Random) -> int:
    """Return another number within the range: mostly a slip such as one or ten off, or the digits swapped."""
    while True:
        swapped = number // 10 + number % 10 * 10
        slip = rng.choice((number - 1, number + 1, number - 2, number + 2, number - 10, number + 10, swapped))
        other = slip if rng.random() < 0.75 else rng.randint(0, LARGEST)
        if other != number and 0 <= other <= LARGEST:
            return other


def _right_derivation(rng: random.Random) -> Derivation:
    equations = _chain(rng)
    ask = rng.choice((_asked, _ordered))
    return Derivation(ask(equations, rng), _steps(equations, rng), None)


def _chain(rng: random.Random) -> list[_Equation]:
    """Draw 2 or 3 equations; each goes on from the result of the one before."""
    value, length = rng.randint(2, 9), rng.randint(2, 3)
    equations: list[_Equation] = []
    while len(equations) < length:
        operator = rng.choice("+-*")
        equation = _Equation(value, operator, rng.randint(2, 3) if operator == "*" else rng.randint(1, 9))
        if equation.in_range:
            equations.append(equation)
            value = equation.result
    return equations


def _asked(equations: list[_Equation], rng: random.Random) -> str:
    """Ask for the value of one expression, with parentheses around a sum that is multiplied."""
    expression, outer = str(equations[0].left), ""
    for _, operator, operand in equations:
        left = f"({expression})" if operator == "*" and outer in ("+", "-") else expression
        expression, outer = f"{left} {operator} {operand}", operator
    return rng.choice(_ASKED).format(expression)


def _ordered(equations: list[_Equation], _: random.Random) -> str:
    *first, last = (_ORDERED[operator].format(operand) for _, operator, operand in equations)
    return f"Start with {equations[0].left}, {', '.join(first)}, then {last}. What do you get?"


def _steps(equations: list[_Equation], rng: random.Random) -> tuple[str, ...]:
    style = rng.choice(("plain", "numbered"))
    texts = [equation.written(equation.result) for equation in equations]
    if style == "numbered":
        texts = [f"Step {number}: {text}" for number, text in enumerate(texts, 1)]
    if rng.random() < 0.5:
        texts.append(rng.choice(_ANSWERED).format(equations[-1].result))
    return tuple(texts)
