"""`python -m cxrlib`: the command line."""

from cxrlib.cli import main

raise SystemExit(main())
