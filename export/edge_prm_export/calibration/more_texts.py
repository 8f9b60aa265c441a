"""More reasoning texts of our own: with four bits, error compensation has more to learn than with eight (see texts.py).

Word problems, algebra, geometry, chance, logic and programs, right and wrong, terse and long-winded.
"""

from __future__ import annotations

MORE: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "A school buys 14 boxes of pencils with 24 pencils in each, and hands out 3 pencils to each of 95 pupils. How many "
        "pencils are left?",
        (
            "There are 14 * 24 = 336 pencils in all.",
            "The pupils get 95 * 3 = 285 pencils.",
            "That leaves 336 - 285 = 51 pencils.",
            "#### 51",
        ),
    ),
    (
        "Mia saves $18 a week. After 9 weeks she spends a third of her savings on a bicycle helmet and $40 on lights. How "
        "much money does she have left?",
        (
            "In nine weeks Mia saves 18 x 9 = $162.",
            "A third of that is 162 / 3 = $54, so after the helmet she has 162 - 54 = $108.",
            "After the lights she has 108 - 40 = $68 left.",
            "The answer is 68.",
        ),
    ),
    (
        "Peter is four years older than twice the age of his sister. Together they are 40. How old is Peter?",
        (
            "Let s be the age of the sister. Then Peter is 2s + 4.",
            "Together: s + 2s + 4 = 40, therefore 3s = 36 and s = 12.",
            "Peter is 2 * 12 + 4 = 28 years old. Check: 28 + 12 = 40. Right.",
        ),
    ),
    (
        "Solve x^2 - 5x + 6 = 0.",
        (
            "We look for two numbers with product 6 and sum 5: these are 2 and 3.",
            "So x^2 - 5x + 6 = (x - 2)(x - 3).",
            "A product is zero when one factor is zero, hence x = 2 or x = 3.",
        ),
    ),
    (
        "Find the derivative of f(x) = x^3 * sin(x).",
        (
            "By the product rule, f'(x) = (x^3)' sin(x) + x^3 (sin(x))'.",
            "The derivative of x^3 is 3x^2 and that of sin(x) is cos(x).",
            "Thus f'(x) = 3x^2 \\sin(x) + x^3 \\cos(x).",
        ),
    ),
    (
        "A rectangle has a perimeter of 54 cm and is twice as long as it is wide. What is its area?",
        (
            "Let w be the width; then the length is 2w and the perimeter is 2(w + 2w) = 6w.",
            "From 6w = 54 we get w = 9, and the length is 18.",
            "The area is 9 * 18 = 162 square centimetres.",
        ),
    ),
    (
        "Two fair dice are thrown. What is the probability that the sum is at least 10?",
        (
            "There are 36 equally likely outcomes.",
            "A sum of 10 comes up in 3 ways, 11 in 2 ways and 12 in 1 way.",
            "Together these are 6 outcomes, so the probability is 6/36 = 1/6.",
        ),
    ),
    (
        "All roses in the garden are red or white. No white flower there has thorns. This rose has thorns. What colour is it?",
        (
            "Since the flower is a rose of the garden, it is either red or white.",
            "White flowers have no thorns, but this one does, so it cannot be white.",
            "Therefore the rose is red.",
        ),
    ),
    (
        "A shop takes 20% off a coat that costs $150, and then another 10% off at the till. What does the customer pay?",
        (
            "Okay, so first 20% off: 0.8 * 150 = 120.",
            "Then 20% + 10% is 30%, hmm, no: the second discount is taken from 120, not from 150.",
            "So 10% of 120 is 12, and the customer pays 120 - 12 = $108.",
        ),
    ),
    (
        "A tank holds 600 litres. One pipe fills 25 litres a minute, a leak loses 5 litres a minute. How long until it is full?",
        (
            "Each minute the tank gains 25 + 5 = 30 litres.",
            "600 / 30 = 20.",
            "So the tank is full after 20 minutes.",
        ),
    ),
    (
        "What does this program print?\n\ntotal = 0\nfor i in range(1, 5):\n    total += i * i\nprint(total)",
        (
            "The loop runs for i = 1, 2, 3, 4, because the end of a range is left out.",
            "The squares are 1, 4, 9 and 16.",
            "Their sum is 30, so the program prints 30.",
        ),
    ),
    (
        "How many three-digit numbers have digits that add up to 3?",
        (
            "The first digit cannot be 0, so it is 1, 2 or 3.",
            "If it is 3, the others are 0 and 0: one number. If it is 2, the others add up to 1: 210 and 201.",
            "If it is 1, the others add up to 2: 120, 111 and 102.",
            "In all there are 1 + 2 + 3 = 6 numbers.",
        ),
    ),
    (
        "Sarah drives 45 miles in the first hour and 60 miles in each of the next 3 hours. What is her average speed?",
        (
            "She drives 45 + 3 * 60 = 225 miles altogether.",
            "It takes her 4 hours.",
            "Her average speed is 225 / 4 = 56.25 miles per hour.",
        ),
    ),
    (
        "A baker sells loaves for $3.50 and rolls for $0.80. On Monday he sells 40 loaves and 125 rolls; flour and rent cost "
        "him $110. What is his profit?",
        (
            "Loaves bring in 40 * 3.5 = <<40*3.5=140>>140 dollars.",
            "Rolls bring in 125 * 0.8 = <<125*0.8=100>>100 dollars.",
            "So he takes 140 + 100 = $240, and his profit is 240 - 110 = $130.",
            "#### 130",
        ),
    ),
    (
        "Simplify (3 + 4i)(2 - i).",
        (
            "Multiply term by term: 3 * 2 = 6, 3 * (-i) = -3i, 4i * 2 = 8i and 4i * (-i) = -4i^2 = 4.",
            "Add them up: 6 + 4 + (8 - 3)i.",
            "The result is \\boxed{10 + 5i}.",
        ),
    ),
    (
        "Tom has twice as many marbles as Ann, and Ann has 5 fewer than Ben. Ben has 17. How many do they have together?",
        (
            "Ann has 17 - 5 = 12 marbles.",
            "Tom has 2 * 17 = 34 marbles.",
            "Together they have 12 + 34 + 17 = 63 marbles.",
        ),
    ),
    (
        "If it rains, the match is called off. The match was not called off. Did it rain?",
        (
            "Suppose it had rained. Then the match would have been called off.",
            "It was not, which is a contradiction.",
            "So it did not rain.",
        ),
    ),
    (
        "A cyclist covers 36 km in 1.5 hours. At the same speed, how far does she get in 40 minutes?",
        (
            "Her speed is 36 / 1.5 = 24 km/h.",
            "40 minutes are two thirds of an hour.",
            "24 * 2/3 = 16, so she gets 16 km far.",
        ),
    ),
    (
        "The sum of three consecutive odd numbers is 111. Which is the largest?",
        (
            "Wait, let me call the middle one n. Then they are n - 2, n and n + 2.",
            "Their sum is 3n = 111, which gives n = 37.",
            "The largest is 39.",
        ),
    ),
    (
        "Lena reads 24 pages a day. Her book has 312 pages, and she has read for 6 days. How many more days does she need?",
        (
            "So far Lena has read 24 * 6 = 144 pages.",
            "There are 312 - 144 = 168 pages to go.",
            "She needs 168 / 24 = 7 more days.",
            "Answer: 7",
        ),
    ),
    (
        "Is 221 a prime number?",
        (
            "The square root of 221 is a bit less than 15, so we test the primes 2, 3, 5, 7, 11 and 13.",
            "221 is odd, its digits add up to 5, and it does not end in 0 or 5. 7 * 31 = 217 and 11 * 20 = 220.",
            "But 13 * 17 = 221, so 221 is not prime.",
        ),
    ),
    (
        "Water makes up 60% of a fresh mushroom's mass... rather 90%. How much dry matter is in 4 kg of fresh mushrooms?",
        (
            "If 90% of the mass is water, 10% is dry matter.",
            "10% of 4 kg is 0.4 kg.",
            "There are 400 grams of dry matter in them.",
        ),
    ),
)
