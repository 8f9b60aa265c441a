"""A completion -> the texts of its steps and the separators between them; nothing of the text is lost.

`auto` splits at blank lines. Other ways are `blank`, `lines`, and a regular expression that matches separators; where
it matches no character, as `(?=Step )` does, the text is cut at that place.

Tags of thinking and of the answer are no steps: a tag that has a paragraph of its own belongs to its neighbour, an
opening tag to the step after it and a closing tag to the step before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from edge_prm.errors import InputError

SPLITS = ("auto", "blank", "lines")
STEP_SEPARATOR = "\n\n"

_NEWLINE = r"(?:\r\n|\r(?!\n)|\n)"  # one line end of Windows is never taken for two
# A separator runs to the last newline before the next step, white-space-only lines included: a tokenizer may join
# all of a white-space run that ends in a newline, and the token that closes a step must not depend on what follows.
_PATTERNS = {
    "blank": re.compile(rf"{_NEWLINE}[^\S\r\n]*{_NEWLINE}(?:\s*[\r\n])?"),
    "lines": re.compile(rf"{_NEWLINE}(?:\s*[\r\n])?"),
}
_PATTERNS["auto"] = _PATTERNS["blank"]
_NUMBERED = re.compile(r"(?m)^\W*(?:step|paragraph)\s*\d+\b", re.IGNORECASE)
LEADING_BLANK_LINES = re.compile(r"\A(?:\s*[\r\n])?")
_WORD = re.compile(r"\w+")

THINKING_TAGS = (
    *((f"<{name}>", f"</{name}>") for name in ("think", "thinking", "thought", "reason", "reasoning", "seed:think")),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("◁think▷", "◁/think▷"),
    ("[THINK]", "[/THINK]"),
)
"""(opening, closing) tags that models write around their thinking."""
KNOWN_SEPARATORS = ("<extra_0>", "ки")
"""Step separators of published judges, which texts made for another judge may hold."""
ANSWER_TAGS = (("<answer>", "</answer>"), ("<|begin_of_solution|>", "<|end_of_solution|>"))
"""(opening, closing) tags that models write around what follows their thinking."""


def _any_of(tags: Sequence[str]) -> str:
    return "|".join(map(re.escape, tags))


_OPENING = _any_of([tag for tag, _ in THINKING_TAGS])
_CLOSING = _any_of([tag for _, tag in THINKING_TAGS])
_AROUND_ANSWER = _any_of([tag for pair in ANSWER_TAGS for tag in pair])
_TAG_STARTS = tuple({tag[0] for pair in (*THINKING_TAGS, *ANSWER_TAGS) for tag in pair})
"""What tags begin with: most texts hold none of these, and need no search."""
_TAG = re.compile(rf"(?P<open>{_OPENING})|(?P<close>{_CLOSING})|(?P<answer>{_AROUND_ANSWER})", re.IGNORECASE)
_TAGS_ONLY = re.compile(rf"(?:\s*(?:{_OPENING}|{_CLOSING}|{_AROUND_ANSWER}))+\s*", re.IGNORECASE)
_CLOSING_FIRST = re.compile(rf"\s*(?:{_CLOSING}|{_any_of([tag for _, tag in ANSWER_TAGS])})", re.IGNORECASE)


def splitter(split: str) -> re.Pattern[str]:
    """Return the pattern that matches step separators.

    InputError for an empty string, a word that names no way to split, and a regular expression that does not compile
    or that matches empty text, and so would cut between all characters.
    """
    names = f"{', '.join(SPLITS[:-1])} or {SPLITS[-1]}"
    if not isinstance(split, str):
        raise InputError(f"split is {type(split).__name__}, not a string: {shown(split)}; give {names} or a pattern")
    if split in _PATTERNS:
        return _PATTERNS[split]
    if _WORD.fullmatch(split):
        raise InputError(
            f"split {shown(split)} is not {names}; to split at this word, write a regular expression: '(?:{split})'"
        )
    try:
        pattern = re.compile(split)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"split {shown(split)} is not {names} and not a regular expression ({error})") from None
    if pattern.match(""):
        raise InputError(
            f"split {shown(split)} matches empty text, so it would cut between all characters; give {names} or a "
            "pattern that needs a character, such as '(?=Step )'"
        )
    return pattern


def split_completion(completion: str, split: str) -> tuple[str, list[str], list[str]]:
    """Return (lead, texts, separators): lead + text + separator + text + ... is the completion, to the character.

    `lead` is white space before the first text. The lists have the same length; they are empty where the completion
    holds nothing but separators, white space and tags.
    """
    pattern = splitter(split)
    found = LEADING_BLANK_LINES.match(completion)
    lead = found.group() if found else ""
    texts: list[str] = []
    separators: list[str] = []
    start = len(lead)
    for match in pattern.finditer(completion, start):
        text = completion[start : match.start()]
        if text.strip():
            texts.append(text)
            separators.append(match.group())
        elif match.end() == match.start():  # an empty match where a step begins
            continue
        elif separators:  # two separators with nothing but white space between them are one
            separators[-1] += text + match.group()
        else:
            lead += text + match.group()
        start = match.end()
    rest = completion[start:]
    if rest.strip():
        texts.append(rest)
        separators.append("")
    elif separators:
        separators[-1] += rest
    texts, separators, _ = join_tags(texts, separators, range(len(texts)))
    return lead, texts, separators


def cut_at(completion: str, separator: str | None) -> list[str]:
    """Cut a completion at a bundle's own separator, such as `<extra_0>`; an empty list where it does not hold it.

    A separator of white space is left to the ways to split. One of letters, such as `ки`, is no part of a word.
    """
    bare = (separator or "").strip()
    if not bare or bare not in completion:
        return []
    before = r"(?<!\w)" if bare[0].isalnum() else ""
    after = r"(?![^\W\d_A-Z])" if bare[-1].isalnum() else ""  # ER-PRM writes the next step right after the tag
    pieces = re.split(before + re.escape(bare) + after, completion)
    return [piece.strip() for piece in pieces] if len(pieces) > 1 else []


def join_tags(
    texts: Sequence[str], separators: Sequence[str], places: Sequence[int]
) -> tuple[list[str], list[str], list[int]]:
    """Join texts that are tags only with their neighbours, separators between them included.

    Returns texts, separators and the places of the texts that were joined to; nothing is left of tags alone.
    """
    if not any(map(tags_only, texts)):
        return list(texts), list(separators), list(places)
    joined: list[tuple[str, str, int]] = []
    waiting = ""
    for text, separator, place in zip(texts, separators, places, strict=True):
        if not tags_only(text):
            joined.append((waiting + text, separator, place))
            waiting = ""
        elif joined and not waiting and _CLOSING_FIRST.match(text):
            before, between, at = joined[-1]
            joined[-1] = (before + between + text, separator, at)
        else:
            waiting += text + separator
    if waiting and joined:  # an opening tag that nothing follows
        before, between, at = joined[-1]
        closing = separators[-1]
        joined[-1] = (before + between + waiting[: len(waiting) - len(closing)], closing, at)
    return [text for text, _, _ in joined], [separator for _, separator, _ in joined], [at for _, _, at in joined]


def tags_only(text: str) -> bool:
    """Whether a text holds nothing but tags of thinking or of the answer, and white space."""
    return text.lstrip()[:1] in _TAG_STARTS and _TAGS_ONLY.fullmatch(text) is not None


def kinds_of(texts: Sequence[str]) -> list[str]:
    """`thinking` or `response` for each text: what its first character outside of tags lies in.

    Where the first tag of thinking closes it, its opening tag is missing and the texts begin as thinking.
    """
    tagged = [text for text in texts if any(start in text for start in _TAG_STARTS)]
    tags = [match for text in tagged for match in _TAG.finditer(text)]
    if not tags:
        return ["response"] * len(texts)
    inside = next((match["open"] is None for match in tags if match["answer"] is None), False)
    kinds = []
    for text in texts:
        kind = None
        start = 0
        for match in _TAG.finditer(text):
            if kind is None and text[start : match.start()].strip():
                kind = inside
            inside = match["open"] is not None
            start = match.end()
        kinds.append("thinking" if (inside if kind is None else kind) else "response")
    return kinds


def other_split(text: str, steps: int) -> str:
    """What another way to split would give for a text that gave one step; "" where none gives more.

    The result goes into a message: `--split lines would give 3`.
    """
    if steps != 1:
        return ""
    for token in KNOWN_SEPARATORS:
        if len(pieces := [piece for piece in cut_at(text, token) if piece]) > 1:
            return f"--split '{re.escape(token)}' would give {len(pieces)}"
    if len(_NUMBERED.findall(text)) > 1:
        pattern = r"(?=\bStep \d)"
        count = len(split_completion(text, pattern)[1])
        if count > 1:
            return f"--split '{pattern}' would give {count}"
    count = len(split_completion(text, "lines")[1])
    return f"--split lines would give {count}" if count > 1 else ""


def shown(value: object) -> str:
    """A value as an error message shows it: short, whatever it is."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
