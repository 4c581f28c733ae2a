"""`python -m sandbox.runpod`: runs a local RunPod in a separate process, until SIGTERM or Ctrl-C.

The first line of its output is JSON with `api_url`, `rest_url`, `api_key` and `admin_url`.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading

from sandbox.errors import SandboxError
from sandbox.runpod.local import LocalRunPod


def _assignment(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sandbox.runpod", description="RunPod on this machine")
    parser.add_argument("--handler", default="lora_trainer.handler", help="module that the workers run")
    parser.add_argument("--endpoint", default="local", help="the endpoint's id")
    parser.add_argument("--api-key", help="the callers' key; a new one by default")
    parser.add_argument("--port", type=int, default=0, help="of the public API; a free one by default")
    parser.add_argument("--rest-port", type=int, default=0, help="of the REST API; a free one by default")
    parser.add_argument(
        "--image",
        type=_assignment,
        action="append",
        metavar="NAME=MODULE",
        help="an image that endpoints created through the REST API can have; without this, every one runs --handler",
    )
    parser.add_argument("--workers", type=int, default=1, help="most worker processes at a time")
    parser.add_argument(
        "--env", type=_assignment, action="append", default=[], metavar="NAME=VALUE", help="for the workers"
    )
    return parser.parse_args()


def main() -> int:
    """Serve until a signal stops it; returns 1 if it can't start."""
    arguments = _parse()
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    try:
        runpod = LocalRunPod.start(
            api_key=arguments.api_key,
            port=arguments.port,
            rest_port=arguments.rest_port,
            images=None if arguments.image is None else dict(arguments.image),
            endpoint=arguments.endpoint,
            handler_module=arguments.handler,
            workers_max=arguments.workers,
            env=dict(arguments.env),
        )
    except SandboxError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    with runpod:
        names = ("api_url", "rest_url", "api_key", "admin_url")
        addresses = {name: getattr(runpod, name) for name in names}
        sys.stdout.write(json.dumps(addresses) + "\n")
        sys.stdout.flush()
        stopped.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
