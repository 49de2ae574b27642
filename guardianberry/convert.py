"""A shim: `python -m guardianberry.convert`, as messages and documents name it, is detection/conversion_child.py."""

import sys

from guardianberry.detection.conversion_child import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
