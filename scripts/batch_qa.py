#!/usr/bin/env python3
"""`vstream batch` as a script: questions about many videos, one pass over each; --help says how."""

import sys

from vstream.app.cli import main

if __name__ == "__main__":
    sys.exit(main(["batch", *sys.argv[1:]]))
