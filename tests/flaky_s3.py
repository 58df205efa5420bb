"""moto's S3 server, which writes every request down, and answers 503 where it is told to.

``python flaky_s3.py FOLDER`` says on which port it listens. ``FOLDER/requests.log`` has a line per request;
``FOLDER/faults.json`` names patterns of such lines, and how many of each are to fail.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server
from werkzeug.wrappers import Response

FOLDER = Path(sys.argv[1])
failed: "Counter[tuple[str, str]]" = Counter()
moto = create_backend_app("s3")


def fails(line: str) -> bool:
    rules = (FOLDER / "faults.json").read_text() if (FOLDER / "faults.json").exists() else "{}"
    for pattern, times in json.loads(rules or "{}").items():
        if re.search(pattern, line) and failed[rules, pattern] < times:
            failed[rules, pattern] += 1
            return True
    return False


def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    line = f"{environ['REQUEST_METHOD']} {environ['RAW_URI']} {environ.get('HTTP_RANGE', '')}".rstrip()
    faulty = fails(line)
    with (FOLDER / "requests.log").open("a") as log:
        log.write(f"{line}{' 503' * faulty}\n")
    if faulty:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        return Response(status=503)(environ, start_response)
    answered: Iterable[bytes] = moto(environ, start_response)
    return answered


class Handler(MotoRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or what follows the headers waits 40 ms until their receipt is acknowledged

    def log(self, type: str, message: str, *arguments: object) -> None: ...


with make_server("127.0.0.1", 0, answer, threaded=True, request_handler=Handler) as server:
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
