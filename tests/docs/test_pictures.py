"""The pictures in the documents show what the program draws now."""

import os
import re

import pytest
from examples import ROOT, documents, read
from pictures import PICTURES, printed, words


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_of_watch_shows_what_it_draws_of_these_figures(name):
    shown = words(read(f"docs/_static/{name}"))
    assert shown == printed(name), "python tests/support/pictures.py draws them anew"
    assert "waiting" in shown


def test_a_picture_asks_for_nothing_from_elsewhere_and_is_shown_on_a_page():
    pages = "".join(read(page) for page in documents())
    pictures = [name for name in os.listdir(os.path.join(ROOT, "docs/_static")) if name.endswith(".svg")]
    assert sorted(pictures) == sorted(PICTURES)
    for name in pictures:
        addresses = set(re.findall(r"https?://[^\"\s)]+", read(f"docs/_static/{name}")))
        assert addresses == {"http://www.w3.org/2000/svg"}
        assert f"_static/{name})" in pages
