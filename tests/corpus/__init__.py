"""Broken and unusual datasets, each with what the reader must say about it.

A case holds the bytes of a file and its expected outcome: the sentence with which the file is refused,
or the sentences of its bad lines and the number of its examples.
"""

from tests.corpus.answers import ANSWERS
from tests.corpus.documents import DOCUMENTS
from tests.corpus.files import FILES
from tests.corpus.json_lines import JSON_LINES
from tests.corpus.turns import TURNS

CASES = FILES + DOCUMENTS + JSON_LINES + TURNS + ANSWERS
