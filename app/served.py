"""What the server offers besides the pages: plotly.js, which draws images of figures."""

from importlib.util import find_spec
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

PLOTLY = "/plotly.min.js"
"""Its address. Give it a version, because the browser keeps it."""


def plotly(_: Request) -> FileResponse:
    """The plotly.js of the installed plotly. Streamlit has one too, but for itself."""
    found = find_spec("plotly")
    assert found
    assert found.origin
    path = Path(found.origin).parent / "package_data" / "plotly.min.js"
    return FileResponse(path, media_type="text/javascript", headers={"Cache-Control": "max-age=86400"})


ROUTES = [Route(PLOTLY, plotly)]
