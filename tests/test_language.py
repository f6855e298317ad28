"""The words of the package, in docstrings, comments and messages; and the size of its files and functions."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "llmdeploy"

FRAGMENT = re.compile(
    "(of|what|whose|that|those|which|where|when|how|who|whom|why|as|by|so|such|to|from|in|on|with|without|for|than|then|"
    "if|it|its|nothing|nobody|none)$",
    re.IGNORECASE,
)
"""First words of a fragment, which no docstring is."""
NOT_A_VERB = re.compile(
    "(the|a|an|all|one|another|whether|each|every|this|these|they|his|true|false|no|not|some|any|both|and|or|but|is|are)$",
    re.IGNORECASE,
)
"""First words that a function's docstring does not have: it says what to do, as `Return ...`."""
RIDDLES = re.compile(
    r"(?<!there )\b(is|are|was|were|be) no (?!(longer|more|less|fewer|later|larger|smaller)\b)[a-z`]"
    r"|\banew\b|\banother's\b|\bof ours\b|\bof theirs\b|\bof one's own\b"
    r"|\bwhere none\b|\bthat is none\b|\bwhat is none\b"
    r"|\bis nobody's\b|\bthat none\b|\bhave .{1,30} be\b",
    re.IGNORECASE,
)
"""Phrases that a reader has to solve: write `is not a valid ...`, `again`, `if there is none`, `wait until ...`."""
LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 400, 60


@cache
def sources() -> dict[Path, str]:
    return {path: path.read_text() for path in sorted(PACKAGE.rglob("*.py")) if path.name != "completion_table.py"}


def docstrings(node: ast.AST) -> Iterator[tuple[bool, int, str]]:
    """Yield whether each docstring is a function's, its line and its text; the strings below fields included."""
    body = getattr(node, "body", None)
    if not isinstance(body, list):
        return
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        marks = [ast.unparse(mark) for mark in getattr(node, "decorator_list", [])]
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and "property" not in " ".join(marks)
        if text := ast.get_docstring(node):
            yield function, getattr(node, "lineno", 1), text
    for before, after in pairwise(body):
        field = isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr)
        if field and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            yield False, after.lineno, after.value.value
    for child in [*body, *(getattr(node, "orelse", None) or [])]:
        yield from docstrings(child)


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield each string and each comment with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def test_docstring_begins_with_a_verb_or_a_noun() -> None:
    found = []
    for path, source in sources().items():
        for function, line, text in docstrings(ast.parse(source)):
            first = re.split(r"[^A-Za-z']", text.strip(), maxsplit=1)[0]
            if FRAGMENT.match(first) or (function and NOT_A_VERB.match(first)):
                found.append(f"{path}:{line}: {text.strip().splitlines()[0]}")
    assert not found, "\n".join(found)


def test_text_is_plain() -> None:
    found = [
        f"{path}:{line}: {text.strip()[:100]}"
        for path, source in sources().items()
        for line, text in texts(source)
        if RIDDLES.search(text)
    ]
    assert not found, "\n".join(found)


def test_file_and_function_are_short() -> None:
    found = [
        f"{path}: {source.count(chr(10))} lines"
        for path, source in sources().items()
        if source.count("\n") > LINES_OF_A_FILE
    ]
    for path, source in sources().items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.body[0].lineno + 1  # without its declared options
                if lines > LINES_OF_A_FUNCTION:
                    found.append(f"{path}:{node.lineno}: `{node.name}` has {lines} lines")
    assert not found, "\n".join(found)
