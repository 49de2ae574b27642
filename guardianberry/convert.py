"""`python -m guardianberry.convert`, as messages and documents name it; the converter is detection/convert.py."""

import sys

from guardianberry.detection.convert import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
