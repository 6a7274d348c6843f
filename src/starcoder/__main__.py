"""`python -m starcoder` is the command `starcoder`."""

from starcoder.cli import main

if __name__ == "__main__":
    main()
