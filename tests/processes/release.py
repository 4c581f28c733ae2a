"""`lora-worker` of another release: it knows the schemas of `RELEASE_SCHEMAS`, and looks for a new one every second."""

import os

from lora_worker.commands.cli import main
from lora_worker.database import calls
from lora_worker.duties import daemon

if __name__ == "__main__":
    calls.SCHEMA_VERSIONS = frozenset(map(int, os.environ["RELEASE_SCHEMAS"].split(",")))
    daemon._WATCH_SECONDS = 1.0
    main()
