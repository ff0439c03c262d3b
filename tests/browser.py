"""A headless browser for tests: opens a page that is served here, and takes what the page posts back."""

import json
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from kerasseg.cli.web_page import Handler, make_server

# Nothing but this machine is reached, nothing of another browser's is used.
_QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
_QUIET += ("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1000,800")
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_PATIENCE = 120


def chromium() -> str:
    """The browser's program; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("no Chromium here: nothing to open the page in")
    return found


class _Answering(Handler):
    """Also takes what is posted."""

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        self.server.posted = json.loads(self.rfile.read(length))
        self.send_response(204)
        self.end_headers()
        self.server.done.set()


def posted_by(folder: Path, script: str):
    """Runs a module script in a page of a folder.

    Args:
        folder: What is served; the page lies in its root.
        script: JavaScript that calls `post(anything JSON-like)` once; an error is posted by itself, and fails the test.
    Returns:
        What was posted.
    """
    program = chromium()
    (folder / "test.html").write_text(f"<!DOCTYPE html><meta charset=utf-8><body><script type=module>{_FRAME % script}</script>")
    server = make_server(folder, handler=_Answering)
    server.done, server.posted = threading.Event(), None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        address = f"http://127.0.0.1:{server.server_port}/test.html"
        command = [program, *_QUIET, f"--user-data-dir={profile}", "--remote-debugging-port=0", address]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            came = server.done.wait(_PATIENCE)
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()
            server.server_close()
            thread.join()
    assert came, f"the page posted nothing in {_PATIENCE} s"
    assert "error" not in server.posted, server.posted["error"]
    return server.posted["value"]


_FRAME = """
async function send(values) { await fetch('/', {method: 'POST', body: JSON.stringify(values)}); }
const post = (value) => send({value});
try {
%s
} catch (error) { await send({error: String(error.stack ?? error)}); }
"""
