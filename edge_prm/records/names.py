"""Names of fields that rows of the usual data sets have, by what they hold."""

from __future__ import annotations

PROMPTS = ("problem", "prompt", "question", "instruction", "query")
"""The problem, in the order in which they are looked for."""
COMPLETIONS = ("completion", "response", "output", "generation", "generated_text", "model_output", "solution")
"""An answer as text. `solution` comes last: next to generations it is a reference solution, and never scored."""
REFERENCE = "solution"
CANDIDATES = ("candidates", "generations", "responses", "completions", "samples", "outputs")
"""Several answers to one problem."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Reasoning that an API returns apart from `content`."""
IDS = ("id", "uuid", "unique_id", "problem_id", "custom_id", "request_id", "doc_id", "idx")
CORRECT = ("correctness_math_verify", "correctness", "is_correct", "correct")
"""Whether each of several answers is right."""

USER_ROLES = ("user", "human")
ASSISTANT_ROLES = ("assistant", "gpt", "model", "bot", "chatgpt")
SYSTEM_ROLES = ("system", "developer")

LIST_COLUMNS = frozenset(
    ("steps", "labels", "messages", "conversations", "modified_process", "error_steps", "thinking_trajectories")
) | frozenset(CANDIDATES)
"""Columns of a CSV file whose cells hold JSON."""
VALUE_COLUMNS = frozenset(("label", "final_answer_correct", *CORRECT))
"""Columns of a CSV file whose cells hold a number or a truth value."""
KNOWN_COLUMNS = LIST_COLUMNS | frozenset((*PROMPTS, *COMPLETIONS, *REASONING, "content", "text"))
