"""python -m engine.study runs/demo: the table of a study's runs."""

import sys

from engine.study.status import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
