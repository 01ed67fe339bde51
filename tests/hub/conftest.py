"""A Hub on this machine, which huggingface_hub in this process talks to."""

from collections.abc import Iterator

import hub_server
import huggingface_hub.constants as constants
import pytest
from hub_server import Hub
from huggingface_hub.utils import close_session


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    """An empty Hub and an empty cache; the user is logged in."""
    with hub_server.serving() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage isn't part of the stand-in
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield served
        close_session()
