"""YAML from untrusted sources: plain values, within limits."""

import pytest

from segpipe.storage.documents import DocumentError
from segpipe.storage.yaml_text import MOST_ALIASES, MOST_BYTES, parse_yaml


def test_plain_values_and_repeated_ones():
    text = "a: &n [1, 2.5]\nb: *n\nc: {d: yes, e: ~}\nf: 2020-01-02\n"
    found = parse_yaml(text)
    assert (found["a"], found["b"], found["c"]) == ([1, 2.5], [1, 2.5], {"d": True, "e": None})


REFUSED = {
    "objects": ("!!python/object/apply:os.system ['true']", "is not YAML: .*could not determine a constructor"),
    "syntax": ("a: [", "is not YAML"),
    "date": ("a: 2020-13-77", "is not YAML"),
    "several": ("a: 1\n---\nb: 2", "is not YAML"),
    "deep": ("[" * 5000, "must not be nested in more than 64 levels|is not YAML"),
    "levels": ("[" * 90 + "]" * 90, "must not be nested in more than 64 levels"),
    "bomb": (
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n",
        "must not repeat repeated values, .* in line 2: write the value out",
    ),
    "circle": ("a: &a [*a]", "must not repeat repeated values"),
    "many": ("a: &a 1\nb: [" + "*a ," * (MOST_ALIASES + 1) + "]", "must not repeat repeated values, or more than 100"),
    "large": ("#" * (MOST_BYTES + 1), "must not be larger than 1 MB"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    text, match = REFUSED[name]
    with pytest.raises(DocumentError, match=match):
        parse_yaml(text)
