"""A process that tries no files; the variable `FAKE_PROOF` chooses its behaviour, one word for each try."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from sandbox.standin_proof import try_nothing

_LONGER_THAN_ANY_TEST_SECONDS = 3600


def main() -> None:
    task = json.loads(sys.stdin.readline())
    note = Path(os.environ["FAKE_CHILD_NOTE"]).with_name("proofs.jsonl")
    with note.open("a") as file:
        file.write(json.dumps(task) + "\n")
    tries = os.environ["FAKE_PROOF"].split()
    verb = tries[min(len(note.read_text().splitlines()), len(tries)) - 1]
    proof = Path(task["folder"]) / "proof.json"
    if verb == "succeed":
        try_nothing(task)
    elif verb == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif verb == "wait":
        proof.with_name("trying").touch()
        time.sleep(_LONGER_THAN_ANY_TEST_SECONDS)
    else:
        error = {"code": verb, "message": "It went wrong.", "hint": "Mend it."}
        proof.write_text(json.dumps({"error": error}))


main()
