"""A token that a server repeats is taken out, in whichever form it comes."""

import base64
import html
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.pointillist.echoed_token import REDACTED, without_token

TOKEN = 'a"Z/&9<+\\x~-token'
tokens = st.text(alphabet=st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=8, max_size=60)

around = st.binary(max_size=5)
alphabets = st.sampled_from([base64.b64encode, base64.urlsafe_b64encode])


def everywhere_escaped(token: str) -> str:
    return "".join(f"\\u{ord(one):04X}" for one in token)


FORMS = {
    "as it is": TOKEN,
    "JSON": json.dumps(TOKEN)[1:-1],
    "JSON with escaped solidi": json.dumps(TOKEN)[1:-1].replace("/", "\\/"),
    "JSON, everything escaped": everywhere_escaped(TOKEN),
    "JSON, everything escaped in small letters": everywhere_escaped(TOKEN).lower(),
    "URL": quote(TOKEN, safe=""),
    "URL in small letters": quote(TOKEN, safe="").replace("%2F", "%2f"),
    "URL, everything escaped": "".join(f"%{ord(one):02X}" for one in TOKEN),
    "HTML": html.escape(TOKEN),
    "HTML by numbers": "".join(f"&#{ord(one)};" for one in TOKEN),
    "HTML by hexadecimal numbers": "".join(f"&#x{ord(one):x};" for one in TOKEN),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_token_in_another_form_is_taken_out(form: str) -> None:
    assert without_token(TOKEN, f"bad token {FORMS[form]}, sorry") == f"bad token {REDACTED}, sorry"


@given(tokens, around, around, alphabets)
def test_a_token_in_base64_is_taken_out_also_from_the_middle_of_a_text(
    token: str, before: bytes, after: bytes, encode: object
) -> None:
    encoded = encode(before + token.encode() + after).decode()  # type: ignore[operator]
    assert REDACTED in without_token(token, f"basic {encoded}")


@given(tokens, st.text(), st.text())
def test_whatever_stands_around_it_the_token_is_gone_and_the_rest_is_there(token: str, before: str, after: str) -> None:
    shown = without_token(token, before + token + after)
    assert token not in shown.replace(REDACTED, "\0") or token in REDACTED
    assert REDACTED in shown


def test_without_a_token_a_text_stays_as_it_is() -> None:
    assert without_token("", "text") == "text"
    assert without_token(TOKEN, "text") == "text"
