"""What the dashboard is made of, and who is given it."""

import re
from pathlib import Path

import httpx
import pytest

import streamactors as sa
from streamactors.observe import dashboard
from streamactors.service import control_app, served
from tests.observe.jobs import config, flow_of, running
from tests.programs import ROOT
from tests.runtime.feeds import Feed

FOLDER = ROOT / "streamactors" / "observe" / "web"
TOKEN = "a-token-of-the-tests"


def test_all_of_its_files_are_served() -> None:
    there = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    assert there == set(dashboard.FILES)


@pytest.mark.parametrize("name", dashboard.FILES)
def test_no_file_names_another_host_or_makes_markup(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert set(re.findall(r"https?://[^\s\"')]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|localStorage", text)
    assert not re.search(r"<script(?! type=\"module\" src=)|\son\w+=|\sstyle=", text)
    assert max(map(len, text.splitlines())) < 250, "minified"


async def test_each_file_has_its_type_and_the_policy(tmp_path: Path) -> None:
    async with running(tmp_path, Feed()) as (_, api):
        for name in dashboard.FILES:
            answer = await api.client.get(f"/dashboard/{name}")
            assert answer.content == (FOLDER / name).read_bytes()
            assert answer.headers["content-security-policy"] == dashboard.POLICY
            assert answer.headers["x-content-type-options"] == "nosniff"
            kind = answer.headers["content-type"]
            assert kind.startswith("text/javascript" if name.endswith(".js") else ("text/", "image/svg+xml"))
        for path in ("/", "/dashboard"):
            assert (await api.client.get(path, follow_redirects=True)).url.path == "/dashboard/"
        for path in ("none.js", "../rest.py", "..%2frest.py", "%2e%2e/rest.py", "views/", "/etc/passwd"):
            assert (await api.client.get(f"/dashboard/{path}")).status_code == 404


async def test_without_the_token_there_is_the_page_and_nothing_else(tmp_path: Path) -> None:
    async with (
        sa.start(flow_of(Feed()), config(tmp_path), on_exit="cancel") as job,
        served(job, "0.0.0.0:0", token=TOKEN) as where,
        httpx.AsyncClient(base_url=where.url.replace("0.0.0.0", "127.0.0.1"), trust_env=False) as client,
    ):
        for path in ("/dashboard/", *(f"/dashboard/{name}" for name in dashboard.FILES)):
            assert (await client.get(path)).status_code == 200
            assert (await client.post(path)).status_code in (401, 405)
            assert (await client.get(path, headers={"host": "evil.example"})).status_code == 403
        for path in ("/api/v1/jobs", "/metrics", "/dashboard/../metrics", "/dashboard/none"):
            assert (await client.get(path)).status_code == 401, path


async def test_below_a_path_of_a_service(tmp_path: Path) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    async with sa.start(flow_of(Feed()), config(tmp_path), on_exit="cancel") as job:
        app = Starlette(routes=[Mount("/streams", control_app(job, token=TOKEN, closed=True))])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            page = await client.get("/streams/", follow_redirects=True)
            assert page.url.path == "/streams/dashboard/" and "<title>streamactors" in page.text
            assert (await client.get("/streams/dashboard/app.js")).status_code == 200
            assert (await client.get("/streams/api/v1/jobs")).status_code == 401
