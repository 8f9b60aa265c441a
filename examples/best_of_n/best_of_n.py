"""Best of N: llama-cpp-python samples N answers, the judge chooses one.

    python best_of_n.py BUNDLE GENERATOR.gguf ["a problem" ...]

Without a problem, it takes problems that the tiny generator and the demo checkpoint know, and counts right answers.
"""

import re
import sys
from collections.abc import Iterator

import llama_cpp

import edge_prm
from edge_prm.demo.derivations import generate

SAMPLES, PROBLEMS, SHOWN, SEED = 8, 24, 2, 1
CONTEXT, LONGEST_ANSWER = 1024, 512  # tokens; raise both for a real generator
TINY_GENERATOR = "edge-prm tiny generator"
END_OF_ANSWER = re.compile(r"(?:The answer is|Answer:) \d+\.?")


def sample(generator: llama_cpp.Llama, problem: str) -> Iterator[str]:
    """Yield answers to a problem, each a text with blank lines between its steps."""
    tiny = generator.metadata.get("general.name") == TINY_GENERATOR
    for _ in range(SAMPLES):
        # All of the distribution (no top_k, no top_p): best of N needs answers that differ. llama-cpp-python keeps the
        # prompt in its KV cache, so each answer costs its own tokens only.
        reply = generator.create_chat_completion(
            [{"role": "user", "content": problem}],
            max_tokens=64 if tiny else LONGEST_ANSWER,
            temperature=0.8,
            top_k=0,
            top_p=1.0,
            min_p=0.0,
        )
        text = reply["choices"][0]["message"]["content"]
        # The tiny generator never learned to end a text, so it is cut after the sentence with the answer.
        end = END_OF_ANSWER.search(text) if tiny else None
        yield text[: end.end()] if end else text


def choose(prm: edge_prm.PRM, problem: str, answers: list[str], show: bool) -> str:
    """Return the best answer to a problem."""
    # The problem is computed once, then each answer costs its own tokens. An answer that cannot be scored, such as an
    # empty one, is no error: it has no score, and `ranking.errors` says why.
    ranking = prm.rank(problem, answers)
    if show:
        print(f"\n{problem}")
        for index, (answer, score) in enumerate(zip(answers, ranking.scores, strict=True)):
            mark = ">" if index == ranking.best else " "
            print(f" {mark} {'     ' if score is None else f'{score:.3f}'}  " + answer.replace("\n\n", " | "))
    return "" if ranking.best is None else answers[ranking.best]


def main(bundle: str, generator_file: str, *problems: str) -> None:
    """Answer the given problems, or count right answers to problems whose answer is known."""
    generator = llama_cpp.Llama(generator_file, n_ctx=CONTEXT, seed=SEED, verbose=False)
    with edge_prm.load(bundle) as prm:
        for problem in problems:
            choose(prm, problem, list(sample(generator, problem)), show=True)
        if problems:
            return
        chosen_right = all_right = 0
        for number, derivation in enumerate(generate(SEED, PROBLEMS, mistake_rate=0)):
            answers = list(sample(generator, derivation.problem))
            best = choose(prm, derivation.problem, answers, show=number < SHOWN)
            truth = last_number(derivation.steps[-1])
            chosen_right += last_number(best) == truth
            all_right += sum(last_number(answer) == truth for answer in answers)
    print(
        f"\n{PROBLEMS} problems, {SAMPLES} answers each: {all_right / SAMPLES / PROBLEMS:.0%} of all answers are right,"
    )
    print(f"and {chosen_right / PROBLEMS:.0%} of the chosen ones")


def last_number(text: str) -> str:
    """Return the last number in a text, "" where it has none."""
    return (re.findall(r"\d+", text) or [""])[-1]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("give a bundle and a generator: python best_of_n.py prm-int8 generator.gguf")
    main(*sys.argv[1:])
