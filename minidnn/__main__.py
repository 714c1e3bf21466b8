"""``python -m minidnn`` is the `minidnn` command."""

from minidnn.cli import main

if __name__ == "__main__":
    main()
