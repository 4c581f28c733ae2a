"""`python -m sandbox.demo`: run the demo."""

import sys

from sandbox.demo.run import main

if __name__ == "__main__":
    sys.exit(main())
