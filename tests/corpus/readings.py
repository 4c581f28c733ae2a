"""All files whose reading depends on what they hold beside plain text, or on the method."""

from tests.corpus.thoughts import THOUGHTS
from tests.corpus.tools import TOOLS
from tests.corpus.verdicts import VERDICTS

READINGS = TOOLS + THOUGHTS + VERDICTS
