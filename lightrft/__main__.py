"""`python -m lightrft` is `lightrft`, also under torchrun: `torchrun -m lightrft train ...`."""

from lightrft.cli import main

raise SystemExit(main())
