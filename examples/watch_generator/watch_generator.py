"""Judge a generator while it writes, and stop it at the first weak step.

    python watch_generator.py BUNDLE                                   a simulated writer of arithmetic derivations
    python watch_generator.py BUNDLE --generator model.gguf "problem"  llama-cpp-python

A weak step costs no more than itself: the generator is stopped, other steps are sampled for its place, the best of them
is kept, and the generator writes on from there.
"""

import argparse
import itertools
import random
import re
from collections.abc import Callable, Iterator

import edge_prm
from edge_prm.demo.derivations import Derivation, generate, plant_mistake

WEAK_BELOW = 0.5
WAYS = 4  # steps sampled in place of a weak one
MOST_STEPS = 40
SEED = 3
TINY_GENERATOR = "edge-prm tiny generator"
END_OF_ANSWER = re.compile(r"(?:The answer is|Answer:) \d+\.?")

Writer = Callable[[list[str]], Iterator[tuple[str, bool]]]
"""Goes on after the given steps: yields (step, whether it is the last one) until it is closed."""


def watch(prm: edge_prm.PRM, problem: str, write: Writer) -> edge_prm.Score:
    """Let a writer solve a problem under the eyes of the judge; return the score of what was kept."""
    print(f"\n{problem}")
    session = prm.session(problem)
    last = False
    while not last and len(session.steps) < MOST_STEPS:
        for step, last in write(list(session.steps)):
            reward = session.push(step, last=last)  # computes the tokens of this step only
            print(f"  {reward:.3f}  {step}")
            if reward < WEAK_BELOW:
                break  # leaving the loop closes the writer: it writes no token more
        else:
            break  # it has nothing more to say
        session.trim(len(session.steps) - 1)
        session, last = best_branch(session, write)
        print(f"  {session.rewards[-1]:.3f}  {session.steps[-1]}    <- the best of {WAYS} other ways")
    with session:
        return session.score()


def best_branch(session: edge_prm.Session, write: Writer) -> tuple[edge_prm.Session, bool]:
    """Sample several next steps, each on a branch of the session; return the best branch and whether it is at an end."""
    branches = []
    for _ in range(WAYS):
        for step, last in itertools.islice(write(list(session.steps)), 1):  # its first step, if it has any
            branch = session.branch()  # nothing is computed again
            branch.push(step, last=last)
            branches.append((branch, last))
    session.close()
    branches.sort(key=lambda pair: pair[0].rewards[-1])
    best, last = branches.pop()
    for branch, _ in branches:
        branch.close()  # frees its KV cache
    return best, last


def simulated_writer(derivation: Derivation, rng: random.Random) -> Writer:
    """A stand-in for a generator: it knows the right derivation and makes mistakes."""

    def write(steps: list[str]) -> Iterator[tuple[str, bool]]:
        attempt = plant_mistake(derivation, rng) if rng.random() < 0.6 else derivation
        for index in range(len(steps), len(attempt.steps)):
            yield attempt.steps[index], index == len(attempt.steps) - 1

    return write


def llama_writer(file: str, problem: str) -> Writer:
    """A generator in llama-cpp-python that streams; any GGUF with a chat template."""
    import llama_cpp
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    llama = llama_cpp.Llama(file, n_ctx=1024, seed=SEED, verbose=False)
    formatter = Jinja2ChatFormatter(llama.metadata["tokenizer.chat_template"], eos_token="", bos_token="")
    prompt = formatter(messages=[{"role": "user", "content": problem}]).prompt
    tiny = llama.metadata.get("general.name") == TINY_GENERATOR

    def write(steps: list[str]) -> Iterator[tuple[str, bool]]:
        # The answer so far is a part of the prompt, so that the model goes on with it. llama-cpp-python keeps the
        # common beginning of two calls in its KV cache.
        text = prompt + "".join(step + "\n\n" for step in steps)
        written = ""
        for chunk in llama.create_completion(text, max_tokens=512, temperature=0.8, stream=True):
            written += chunk["choices"][0]["text"]
            *complete, written = written.split("\n\n")
            for step in filter(str.strip, complete):
                # The tiny generator never learned to end a text, so its answer is the last step.
                if tiny and (answer := END_OF_ANSWER.match(step)):
                    yield answer.group(), True
                    return
                yield step, False
        if written.strip():
            yield written, True

    return write


def main() -> None:
    """Read the command line and watch a generator."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("problem", nargs="?")
    parser.add_argument("--generator", help="a GGUF file; without it, a simulated writer")
    options = parser.parse_args()
    with edge_prm.load(options.bundle) as prm:
        if options.generator:
            problem = options.problem or next(generate(SEED, 1)).problem
            score = watch(prm, problem, llama_writer(options.generator, problem))
            print(f"kept {len(score.steps)} steps; the weakest reward is {min(score.rewards):.3f}")
            return
        rng = random.Random(SEED)
        kept_right = 0
        derivations = list(generate(SEED, 6, mistake_rate=0))
        for derivation in derivations:
            score = watch(prm, derivation.problem, simulated_writer(derivation, rng))
            kept_right += tuple(step.text for step in score.steps) == derivation.steps
        print(f"\n{kept_right} of {len(derivations)} derivations are right at the end")


if __name__ == "__main__":
    main()
