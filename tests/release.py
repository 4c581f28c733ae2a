"""`lora-worker` of another release: it knows the schemas of `RELEASE_SCHEMAS`, and looks for a new one every second."""

import os

from worker import daemon, queue
from worker.cli import main

if __name__ == "__main__":
    queue.SCHEMA_VERSIONS = frozenset(map(int, os.environ["RELEASE_SCHEMAS"].split(",")))
    daemon._WATCH_SECONDS = 1.0
    main()
