"""All files whose reading depends on what they hold beside plain text, or on the method."""

from tests.corpus.tools import TOOLS

READINGS = TOOLS
