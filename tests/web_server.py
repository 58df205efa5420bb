"""A web server of a folder that answers ranges, in a process of its own: GDAL holds Python still while it asks."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(SimpleHTTPRequestHandler):
    """``silent`` names headers that are left out."""

    silent: tuple[str, ...] = ()
    protocol_version = "HTTP/1.1"

    def send_header(self, keyword: str, value: str) -> None:
        if keyword not in self.silent:
            super().send_header(keyword, value)

    def do_GET(self) -> None:
        path, (unit, _, span) = Path(self.translate_path(self.path)), (self.headers.get("Range") or "").partition("=")
        if unit != "bytes" or not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()
        first, _, last = span.partition("-")
        body = data[int(first) : int(last or len(data)) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(body) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(folder: Path, *silent: str) -> Iterator[str]:
    """The URL of a folder."""
    command = [sys.executable, __file__, str(folder), *silent]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


if __name__ == "__main__":
    Handler.silent = tuple(sys.argv[2:])
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=sys.argv[1]))
    sys.stdout.write(f"{server.socket.getsockname()[1]}\n")
    sys.stdout.flush()
    server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server.serve_forever()
