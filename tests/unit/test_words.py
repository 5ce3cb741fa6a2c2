"""The prose of the code stays plain: few docstrings begin with a question word, and "what" is rare."""

from pathlib import Path

from tests.support.words import per_thousand, read, read_all

MAX_QUESTIONS = 9
MAX_WHATS = 2.0  # per 1,000 words of docstrings and comments


def test_few_docstrings_begin_with_a_question_word() -> None:
    found = [f"{module.path}:{line}: {text}" for module in read_all() for line, text in module.questions]
    assert len(found) <= MAX_QUESTIONS, "\n".join(found)


def test_what_is_rare_in_docstrings_and_comments() -> None:
    modules = read_all()
    found = [f"{module.path}:{line}: {text}" for module in modules for line, text in module.whats]
    assert per_thousand(modules) < MAX_WHATS, "\n".join(found)


def test_docstrings_of_fields_and_comments_are_counted(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('"""A module."""\n\nX = 1\n"""What X is."""\n\nY = 2  # what Y is\n')
    words = read(module)
    assert words.questions == [(4, "What X is.")]
    assert len(words.whats) == 2
    assert words.count == 8
