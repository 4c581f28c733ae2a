"""Does what each artifact's README says, as somebody would who has only the artifact and the base.

`python -m tests.integration.trainer.asking FOLDER...` prints, for each folder, a line of JSON: what is generated with
the README's code, and with the settings of the base alone, special tokens included.
"""

import json
import re
import sys
from pathlib import Path


def code_of(folder: Path) -> str:
    """The README's example, for this folder, and with the question that the tests train on."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    code = code.replace('"path/of/this/folder"', repr(str(folder)))
    return code.replace("Write your question here.", "Go?").replace("max_new_tokens=512", "max_new_tokens=40")


def main(folders: list[str]) -> None:
    for folder in map(Path, folders):
        names: dict = {}
        exec(code_of(folder), names)
        begin, tokenizer = names["prompt"]["input_ids"].shape[1], names["tokenizer"]
        careless = names["model"].generate(**names["prompt"], max_new_tokens=40)[0]
        found = [tokenizer.decode(tokens[begin:]) for tokens in (names["answer"], careless)]
        print(json.dumps(dict(zip(("as_told", "careless"), found, strict=True))))


if __name__ == "__main__":
    main(sys.argv[1:])
