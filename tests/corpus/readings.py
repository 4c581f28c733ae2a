"""All files whose reading depends on what they hold beside plain text, or on the method."""

from tests.corpus.refused_tools import TOOLS_REFUSED
from tests.corpus.thoughts import THOUGHTS
from tests.corpus.thumbs import EDITS, THUMBS
from tests.corpus.tools import TOOLS_ACCEPTED
from tests.corpus.verdicts import PAIRS, WEIGHTS

READINGS = TOOLS_ACCEPTED + TOOLS_REFUSED + THOUGHTS + WEIGHTS + PAIRS + EDITS + THUMBS
