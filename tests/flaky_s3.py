"""Stands before an S3 server: writes every request down, and answers 503 where it is told to.

``python flaky_s3.py PORT_BEHIND FOLDER`` says on which port it listens. ``FOLDER/requests.log`` has a line per request;
``FOLDER/faults.json`` names patterns of such lines, and how many of each are to fail.
"""

import http.client
import json
import re
import sys
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BEHIND, FOLDER = int(sys.argv[1]), Path(sys.argv[2])
failed: "Counter[tuple[str, str]]" = Counter()


def fails(line: str) -> bool:
    rules = (FOLDER / "faults.json").read_text() if (FOLDER / "faults.json").exists() else "{}"
    for pattern, times in json.loads(rules or "{}").items():
        if re.search(pattern, line) and failed[rules, pattern] < times:
            failed[rules, pattern] += 1
            return True
    return False


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        line = f"{self.command} {self.path} {self.headers.get('Range', '')}".rstrip()
        faulty = fails(line)
        with (FOLDER / "requests.log").open("a") as log:
            log.write(f"{line}{' 503' * faulty}\n")
        if faulty:
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        behind = http.client.HTTPConnection("127.0.0.1", BEHIND)
        behind.request(self.command, self.path, body, dict(self.headers))
        answer = behind.getresponse()
        content = answer.read()
        behind.close()
        self.send_response_only(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in ("transfer-encoding", "connection"):
                self.send_header(key, value)
        if self.command != "HEAD" and not answer.getheader("Content-Length"):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - http.server's names

    def log_message(self, *arguments: object) -> None: ...


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # five, as usual, are too few for all threads of a run, where the processor is busy


with Server(("127.0.0.1", 0), Handler) as server:
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
