"""`python -m gptoss_lite`."""

import sys

from gptoss_lite.cli import main

sys.exit(main())
