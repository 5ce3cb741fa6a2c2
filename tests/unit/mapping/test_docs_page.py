"""The page on the mapping says what is so."""

import json
import re

import pytest

from service.events.segment_json import Imported, import_message
from service.mapping.mapping_file import compile_mapping, load_mapping
from tests.support.paths import PROJECT

PAGE = (PROJECT / "docs" / "mapping.md").read_text()
EXAMPLES = re.findall(r"<!-- example: (\w+) -->\n```json\n(.*?)```\n\nbecomes\n\n```json\n(.*?)```", PAGE, re.DOTALL)
RECIPES = re.findall(r"### ([^\n]*)\n\n<!-- recipe -->\n```toml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("name", "event", "record"), EXAMPLES, ids=[name for name, *_ in EXAMPLES])
def test_an_example_of_the_page_becomes_what_the_page_says(name: str, event: str, record: str) -> None:
    # Given the event of the page
    imported = import_message(json.loads(event))
    assert isinstance(imported, Imported), name

    # When it is mapped
    body = load_mapping(None).encode(imported.event, 0)

    # Then it is the record of the page
    assert json.loads(body) == json.loads(record)


@pytest.mark.parametrize(("title", "recipe"), RECIPES, ids=[title for title, _ in RECIPES])
def test_a_recipe_of_the_page_is_a_mapping_that_can_be_used(title: str, recipe: str) -> None:
    assert "[[" in compile_mapping(recipe, title).describe()


def test_the_page_has_both_examples_and_its_recipes() -> None:
    assert [name for name, *_ in EXAMPLES] == ["identify", "track"]
    assert len(RECIPES) == 6
