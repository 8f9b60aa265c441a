"""Our own reasoning texts: golden trajectories, and what the quantizer calibrates on.

Short and plain: arithmetic right and wrong, algebra, logic, code, words, and characters outside ASCII.
"""

from __future__ import annotations

GOLDEN: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "A farmer has 17 sheep and buys 5 more. He then sells 8. How many sheep does he have?",
        (
            "The farmer starts with 17 sheep and buys 5 more, so he has 17 + 5 = 22 sheep.",
            "He sells 8 of them: 22 - 8 = 14.",
            "The answer is 14.",
        ),
    ),
    (
        "What is (6 + 4) * 3 - 7?",
        ("6 + 4 = 10", "10 * 3 = 33", "33 - 7 = 26", "The answer is 26."),
    ),
    (
        "Solve for x: 2x + 3 = 11.",
        (
            "Subtract 3 from both sides: 2x = 8.",
            "Divide both sides by 2: x = 4.",
            "Check: 2·4 + 3 = 11 ✓, so x = 4.",
        ),
    ),
)

CALIBRATION: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "A train leaves at 9:40 and travels 210 kilometres at 84 km/h. When does it arrive?",
        (
            "First find the time on the way. Time is distance divided by speed, so it is 210 / 84 = 2.5 hours.",
            "Two and a half hours are 150 minutes.",
            "From 9:40, two hours later is 11:40, and another 30 minutes make it 12:10.",
            "So the train arrives at 12:10.",
        ),
    ),
    (
        "Maria bakes 48 muffins. She gives a third of them to her neighbours and sells half of the rest for $1.50 "
        "each. How much money does she make?",
        (
            "A third of 48 is 48 / 3 = 16, so Maria gives away 16 muffins.",
            "She has 48 - 16 = 32 muffins left.",
            "Half of the rest is 32 / 2 = 16 muffins, which she sells.",
            "She makes 16 * $1.50 = $24.00.\n#### 24",
        ),
    ),
    (
        "Let $f(x) = x^3 - 6x^2 + 9x + 1$. Find the local maximum of $f$.",
        (
            "We differentiate: $f'(x) = 3x^2 - 12x + 9 = 3(x^2 - 4x + 3) = 3(x - 1)(x - 3)$.",
            "The derivative vanishes at $x = 1$ and $x = 3$. The second derivative is $f''(x) = 6x - 12$.",
            "At $x = 1$ we have $f''(1) = -6 < 0$, hence a maximum; at $x = 3$, $f''(3) = 6 > 0$, a minimum.",
            "The value is $f(1) = 1 - 6 + 9 + 1 = 5$, therefore the local maximum is $\\boxed{5}$.",
        ),
    ),
    (
        "All the books on the shelf are either red or blue. There are three times as many red books as blue ones, and "
        "36 books in total. If 5 red books are taken away, how many red books are left?",
        (
            "<think>\nLet b be the number of blue books. Then there are 3b red ones, and b + 3b = 4b = 36.",
            "So b = 9 and the number of red books is 27. Wait, let me check that: 9 + 27 = 36. Yes.",
            "Taking 5 away leaves 27 - 5 = 22.\n</think>",
            "There are **22** red books left.",
        ),
    ),
    (
        "Write a function that returns the number of vowels in a string, and say what it gives for 'Edge device'.",
        (
            "We go through the characters and count those that are vowels:",
            "```python\ndef vowels(text: str) -> int:\n    return sum(c in 'aeiou' for c in text.lower())\n```",
            "For 'Edge device' the vowels are E, e, e, i, e: that makes 5, so the function returns 5.",
        ),
    ),
    (
        "Three friends, Ann, Ben and Cem, finish a race. Ann is not first. Cem is behind Ben but ahead of Ann. "
        "Which of the following is correct?\nOptions:\n(A) Ben is first.\n(B) Cem is first.\n(C) Ann is second.",
        (
            "Cem is behind Ben, so Ben finished before Cem: Ben, Cem.",
            "Cem is ahead of Ann, so Ann comes after Cem. The order is Ben, Cem, Ann.",
            "Ann is not first, which agrees with this order. Ben is first, therefore the answer is (A).",
        ),
    ),
    (
        "(((7 - 2 + 4) * 3) - (-5 + 8 * 2)) =",
        (
            "This expression can be written as A - B, where A = ((7 - 2 + 4) * 3) and B = (-5 + 8 * 2).",
            "Let's calculate A = ((7 - 2 + 4) * 3) = (9 * 3) = 27.",
            "Let's calculate B = (-5 + 8 * 2) = (-5 + 16) = 11.",
            "Then the final value is A - B = 27 - 11 = 18. So the answer is 18.",
        ),
    ),
    (
        "A bag holds 4 green and 6 yellow marbles. Two are drawn without replacement. What is the probability that "
        "both are green?",
        (
            "The probability that the first marble is green is 4/10.",
            "Given that, 3 of the 9 marbles that remain are green, so the second is green with probability 3/9 = 1/3.",
            "We multiply: 4/10 × 1/3 = 4/30 = 2/15 ≈ 0.133.",
            "Hmm, is the order of any importance here? No, both must be green. The answer is 2/15.",
        ),
    ),
    (
        "What is 15% of 260, plus 12?",
        ("10% of 260 is 26 and 5% is 13.", "15% is 26 + 13 = 39.", "39 + 12 = 51.", "Answer: 51"),
    ),
)
