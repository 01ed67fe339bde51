"""Exporting tables of a scan."""

import pytest

from internal_policy.__main__ import main

pytestmark = pytest.mark.usefixtures("here")


def test_export_overwrites_nothing(asked, here, capsys):
    assert main([*asked, "--output", "mine"]) == 0
    (here / "layers.csv").write_text("mine")
    assert main(["export", "mine"]) == 2
    assert (here / "layers.csv").read_text() == "mine"
