"""`python -m autogaze` is the command `autogaze`."""

import sys

from autogaze.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
