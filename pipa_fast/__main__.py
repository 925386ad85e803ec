# SPDX-License-Identifier: Apache-2.0
"""`python -m pipa_fast`: the same as `pipa-fast`."""

import sys

from pipa_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
