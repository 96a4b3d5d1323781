"""``python -m cnnctl``, which is what torchrun starts."""

from cnnctl.cli import main

if __name__ == "__main__":
    main()
