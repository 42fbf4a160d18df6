"""`python -m lightrft` is `lightrft`, also under torchrun: `torchrun -m lightrft train ...`."""

from lightrft.utils.parent import end_with_launcher

end_with_launcher()

from lightrft.cli import main  # noqa: E402  (imports take seconds, in which the launcher may end)

raise SystemExit(main())
