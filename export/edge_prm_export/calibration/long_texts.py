"""Long reasoning texts of our own, in the manner of models that think aloud: see more_texts.py."""

from __future__ import annotations

LONG: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "Nora is planning a garden party for 26 guests. Each guest drinks on average 3 glasses of lemonade of "
        "0.25 litres. One bottle of syrup gives 6 litres of lemonade and costs $4.75. Lemons for decoration "
        "cost $0.40 each, and one lemon is enough for 4 glasses. How much does she spend on drinks?",
        (
            "Okay, let me work through this carefully. There are 26 guests, and each of them drinks 3 glasses, "
            "so we need 26 * 3 = 78 glasses of lemonade.",
            "Every glass holds a quarter of a litre. 78 * 0.25 = 19.5, so Nora needs 19.5 litres in total.",
            "One bottle of syrup is good for 6 litres. 19.5 / 6 = 3.25. She cannot buy a quarter of a bottle, "
            "so she has to round up and buy 4 bottles. Rounding down would leave the last guests thirsty.",
            "The syrup costs 4 * $4.75 = $19.00.",
            "Now the lemons: 78 glasses divided by 4 glasses per lemon is 19.5 lemons. Again we round up, to "
            "20 lemons.",
            "20 lemons at 40 cents each are 20 * 0.40 = $8.00.",
            "Hmm, wait. Does she decorate every glass, or one glass per guest? The problem says one lemon is "
            "enough for 4 glasses and gives no other limit, so every glass gets a slice.",
            "Altogether Nora spends $19.00 + $8.00 = $27.00 on drinks.\n#### 27",
        ),
    ),
    (
        "Prove that the product of any three consecutive integers is divisible by 6.",
        (
            "<think>\nThe three integers can be written as n, n + 1 and n + 2. I want to show that 2 and 3 "
            "both divide the product, because 2 and 3 have no common factor.",
            "First divisibility by 2. Among two neighbours, one is always even. So n(n + 1) is even already, "
            "whatever the third factor is.",
            "Then divisibility by 3. The remainders of n, n + 1 and n + 2 modulo 3 are three different numbers "
            "out of 0, 1 and 2. Therefore exactly one of the three integers has the remainder 0.",
            "Let me double-check this with an example: 7 * 8 * 9 = 504, and 504 / 6 = 84. Good. What about "
            "negative numbers? (-2) * (-1) * 0 = 0, and 0 is divisible by 6 as well. Fine.\n</think>",
            "**Proof.** Let $n \\in \\mathbb{Z}$ and $p = n(n+1)(n+2)$. One of $n$, $n+1$ is even, hence $2 "
            "\\mid p$. One of $n$, $n+1$, $n+2$ is a multiple of three, hence $3 \\mid p$. Since $\\gcd(2, 3) "
            "= 1$, it follows that $6 \\mid p$. $\\blacksquare$",
        ),
    ),
    (
        "The function below should return the second largest number of a list, but it is wrong for some "
        "inputs. Find the mistake and repair it.\n\ndef second_largest(numbers):\n    largest = second = "
        "numbers[0]\n    for number in numbers:\n        if number > largest:\n            second = largest\n  "
        "          largest = number\n    return second",
        (
            "Let us trace the function with [3, 9, 5]. At the start, largest = second = 3. The 3 changes "
            "nothing; at 9, second becomes 3 and largest becomes 9.",
            "Then comes 5. It is not greater than 9, so nothing happens, and the function returns 3. But the "
            "second largest number of the list is 5, so here is the mistake: a number between the two is "
            "ignored.",
            "A first idea is to add a branch for that case:\n```python\n        elif number > second:\n        "
            "    second = number\n```",
            "Is that enough? Take [9, 3, 5]. Both variables start at 9, and neither 3 nor 5 is greater than 9, "
            "so the function returns 9, which is wrong again. The start values have to be different.",
            "So we begin with minus infinity:\n```python\ndef second_largest(numbers):\n    largest = second = "
            'float("-inf")\n    for number in numbers:\n        if number > largest:\n            largest, '
            "second = number, largest\n        elif number > second:\n            second = number\n    return "
            "second\n```",
            "With [9, 3, 5]: largest = 9, then second = 3, then second = 5. With [3, 9, 5]: 5 as well. Both "
            "are right. For equal numbers, such as [4, 4], it returns 4, which is a matter of definition.",
        ),
    ),
    (
        "Five people, Ada, Bo, Cleo, Dev and Elif, sit in a row of five chairs. Bo sits at one end. Ada sits "
        "directly to the right of Cleo. Dev sits in the middle. Elif does not sit next to Dev. Who sits where, "
        "from left to right?",
        (
            "The chairs are numbered 1 to 5 from left to right. Dev sits on chair 3.",
            "Elif does not sit next to Dev, so she is not on 2 or 4. This leaves chairs 1 and 5 for her, and "
            "Bo also takes one of these two. So Bo and Elif are at the ends, in some order.",
            "Cleo and Ada must then take chairs 2 and 4.",
            "Ada sits directly to the right of Cleo, so their chairs must be neighbours: Cleo on k and Ada on "
            "k + 1. But 2 and 4 are no neighbours.",
            'That is a contradiction, so I should check the clues again. "Dev sits in the middle" fixes chair '
            '3. "Elif does not sit next to Dev" removes 2 and 4. Yes, it is as I said.',
            "Hence there is no arrangement that meets all the clues: the puzzle has no solution.",
        ),
    ),
    (
        "Evaluate the integral $\\int_0^1 x e^{2x} \\, dx$.",
        (
            "We integrate by parts with $u = x$ and $dv = e^{2x} dx$, so that $du = dx$ and $v = \\frac{1}{2} e^{2x}$.",
            "Then \\[\\int_0^1 x e^{2x} \\, dx = \\left[\\frac{x}{2} e^{2x}\\right]_0^1 - \\frac{1}{2} "
            "\\int_0^1 e^{2x} \\, dx.\\]",
            "The first term is $\\frac{1}{2} e^2 - 0 = \\frac{e^2}{2}$.",
            "For the second one, $\\int_0^1 e^{2x} \\, dx = \\left[\\frac{1}{2} e^{2x}\\right]_0^1 = "
            "\\frac{e^2 - 1}{2}$, so we subtract $\\frac{e^2 - 1}{4}$.",
            "Together: $\\frac{e^2}{2} - \\frac{e^2 - 1}{4} = \\frac{2e^2 - e^2 + 1}{4} = \\frac{e^2 + 1}{4}$.",
            "Numerically this is about $(7.389 + 1) / 4 \\approx 2.097$. As the integrand grows from 0 to 7.39 "
            "and is convex, a value near 2 makes sense. The result is $\\boxed{\\dfrac{e^2 + 1}{4}}$.",
        ),
    ),
    (
        "A factory produces 1,200 lamps a day, and 2.5% of them are faulty. A test finds 96% of the faulty "
        "lamps, but it also rejects 1% of the good ones. How many lamps are rejected on an average day, and "
        "which share of them is faulty?",
        (
            "Of 1,200 lamps, 2.5% are faulty: 1,200 * 0.025 = 30 lamps. The other 1,170 lamps are good.",
            "The test rejects 96% of the faulty ones, that is 30 * 0.96 = 28.8 lamps.",
            "It also rejects 1% of the good ones, that is 1,170 * 0.01 = 11.7 lamps.",
            "So 28.8 + 11.7 = 40.5 lamps are rejected on average. An average need not be a whole number, so we "
            "leave it as it is.",
            "The share of faulty lamps among those that are rejected is 28.8 / 40.5 = 0.711..., which is 96%.",
            "So 40.5 lamps a day are rejected, and 96% of them are really faulty.",
        ),
    ),
    (
        "How many different ways are there to climb a staircase of 8 steps if you may take one, two or three "
        "steps at a time?",
        (
            "Let w(n) be the number of ways to climb n steps. The last move comes from one, two or three steps "
            "below, so w(n) = w(n - 1) + w(n - 2) + w(n - 3).",
            "We need three values to begin with. w(0) = 1, since there is one way to do nothing. w(1) = 1. "
            "w(2) = 2: 1 + 1 or 2.",
            "Then w(3) = 2 + 1 + 1 = 4. Let me list them to be sure: 1+1+1, 1+2, 2+1, 3. Yes, four.",
            "w(4) = 4 + 2 + 1 = 7.\nw(5) = 7 + 4 + 2 = 13.\nw(6) = 13 + 7 + 4 = 24.",
            "w(7) = 24 + 13 + 7 = 44, and finally w(8) = 44 + 24 + 13 = 81.",
            "Therefore there are \\boxed{81} ways to climb the staircase.",
        ),
    ),
    (
        "A stone is dropped into a well. The splash is heard 2.6 seconds later. How deep is the well? Take g = "
        "9.8 m/s^2 and 340 m/s for the speed of sound.",
        (
            "Alright. The 2.6 seconds consist of two parts: the stone falls for a time t, and then the sound "
            "travels up for 2.6 - t.",
            "Both cover the depth d of the well. For the fall, d = (1/2) * 9.8 * t^2 = 4.9 t^2; for the sound, "
            "d = 340 * (2.6 - t).",
            "Setting them equal: 4.9 t^2 = 884 - 340 t, that is 4.9 t^2 + 340 t - 884 = 0.",
            "The quadratic formula gives t = (-340 + sqrt(340^2 + 4 * 4.9 * 884)) / (2 * 4.9). Inside the "
            "root: 115600 + 17326.4 = 132926.4, and its root is about 364.59.",
            "So t = 24.59 / 9.8, which is about 2.509 seconds. The other solution is negative and makes no sense here.",
            "Then d = 4.9 * 2.509^2, about 30.85 metres. Check with the sound: 340 * (2.6 - 2.509) = 340 * "
            "0.091 = 30.9. The two agree up to rounding.",
            "Actually, could we have ignored the sound? Then d would be 4.9 * 2.6^2 = 33.1 metres, two metres "
            "too deep. So it matters a little. The well is about 31 metres deep.",
        ),
    ),
    (
        "Jonas runs a small bookshop. In March he sold 340 books, 15% more than in February... no, he says "
        "later: in March he sold 15% fewer than in February. How many did he sell in February, and how many in "
        "both months together?",
        (
            "In March he sold 15% fewer books than in February. So the 340 books of March are 85% of the "
            "number of February.",
            "A common mistake would be to take 15% of 340 and add it: 340 + 51 = 391. But the 15% refer to "
            "February, not to March.",
            "The number of February is 340 / 0.85 = 400.",
            "We check it: 15% of 400 is 60, and 400 - 60 = 340. That fits.",
            "Both months together: 400 + 340 = 740 books.",
            "Answer: 400 books in February, and 740 in both months.",
        ),
    ),
    (
        "What is the remainder when 7^100 is divided by 13?",
        (
            "By Fermat's little theorem, 7^12 leaves the remainder 1 when it is divided by 13, because 13 is "
            "prime and does not divide 7.",
            "Now write 100 = 12 * 8 + 4, so 7^100 = (7^12)^8 * 7^4, which leaves the same remainder as 7^4.",
            "7^2 = 49 = 3 * 13 + 10, so 7^2 leaves 10. Then 7^4 leaves what 10^2 = 100 leaves: 100 = 7 * 13 + 9, so 9.",
            "Let me verify with smaller steps: 7^3 = 343 = 26 * 13 + 5, and 5 * 7 = 35 = 2 * 13 + 9. Yes, 9 again.",
            "The remainder is 9.",
        ),
    ),
    (
        'Translate the sentence into symbols and decide whether it is true: "Every even number greater than 2 '
        'that is smaller than 20 is the sum of two primes."',
        (
            "In symbols: for all n with 2 < n < 20 and n even, there are primes p and q such that n = p + q.",
            "We can simply go through all the cases, since there are only eight of them: 4, 6, 8, 10, 12, 14, "
            "16 and 18.",
            "4 = 2 + 2; 6 = 3 + 3; 8 = 3 + 5; 10 = 5 + 5.",
            "12 = 5 + 7; 14 = 7 + 7; 16 = 5 + 11; 18 = 7 + 11.",
            "All of these are sums of two primes, so the sentence is true. Whether it holds for *all* even "
            "numbers is the conjecture of Goldbach, which nobody has proved.",
        ),
    ),
)
