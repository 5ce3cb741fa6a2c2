"""Any text as a header's value."""

from hypothesis import given
from hypothesis import strategies as st

from service import percent


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_comes_back_and_is_visible_ascii_in_between(text: str) -> None:
    value = percent.encode(text)
    assert percent.decode(value) == text
    assert all(0x21 <= ord(character) <= 0x7E for character in value)


def test_what_is_visible_stays_as_it_is_but_for_the_percent_sign() -> None:
    assert percent.encode("a-b_c~!\"#$&'()*+,/:;<=>?@[]^`{|}%") == "a-b_c~!\"#$&'()*+,/:;<=>?@[]^`{|}%25"
